"""The site builds strictly, holds every page, and its reference names everything public."""

import importlib.util
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import pytest
import yaml

import hf_diffusion_forcing
from support import ROOT


@pytest.fixture(scope="module")
def hooks():
    """The hooks, loaded as MkDocs loads them."""
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "scripts" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".mkdocs.yml", "-d", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder


def links(text):
    """Where the navigation of a built page leads."""
    return set(re.findall(r'<a href="([^"#]+)" class="md-nav__link', text))


def test_every_page_is_in_the_navigation(site):
    built = {path.parent.relative_to(site).as_posix() + "/" for path in site.rglob("index.html")} - {"./"}
    assert built - links((site / "index.html").read_text()) == set()
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {page.removesuffix("/index") + "/" for page in pages} - {"index/"}
    assert pages <= built
    assert built - pages == {"changelog/", "model-card/", "model-card-python-source/"}


def test_a_page_is_in_the_navigation_once(hooks):
    entries = [
        place for place in hooks.named(yaml.safe_load((ROOT / ".mkdocs.yml").read_text())["nav"]) if "*" not in place
    ]
    assert len(entries) == len(set(entries))
    nav = ["a.md", {"B": ["b/c.md", "b/*"]}, "*"]
    assert hooks.filled(nav, ["b/d.md", "b/e/f.md", "g.md"]) == [
        "a.md",
        {"B": ["b/c.md", "b/d.md", "b/e/f.md"]},
        "g.md",
    ]


def test_the_overview_links_every_page():
    text = (ROOT / "docs/index.md").read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert path.name == "index.md" or f"]({path.name}" in text, path.name


def test_every_public_name_is_in_the_reference(site):
    """By the inventory that other sites link by: a zlib stream of `name domain:role priority place label`."""
    header, _, inventory = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert header
    documented = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    missing = {name for name in hf_diffusion_forcing.__all__ if f"hf_diffusion_forcing.{name}" not in documented}
    assert missing == set()


class Page(HTMLParser):
    """What a page shows: its prose without code, its formulas, and everything it fetches."""

    def __init__(self, text: str):
        super().__init__()
        self.prose, self.formulas, self.fetched, self.inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img", "iframe") and attributes.get("src"):
            self.fetched.append(attributes["src"])
        if tag == "link" and attributes.get("rel") in ("stylesheet", "preconnect", "icon"):
            self.fetched.append(attributes["href"])
        if tag in ("code", "pre", "math", "script", "style"):
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag:
            self.inside.pop()

    def handle_data(self, data):
        if not self.inside:
            self.prose.append(data)
        elif "math" in self.inside:
            self.formulas.append(data)


def test_pages_fetch_nothing_from_elsewhere_and_show_no_markup(site):
    for path in site.rglob("*.html"):
        page = Page(path.read_text())
        assert not [source for source in page.fetched if re.match(r"\w+:|//", source)], path
        prose = " ".join(page.prose)
        # What is left when a table, a formula, a list or a section of a docstring was not understood.
        for markup in (
            "| ---",
            "$$",
            "\n- ",
            "\n* ",
            "\n1. ",
            "\n:::",
            "Args:\n",
            "Returns:\n",
            "Raises:\n",
            "Attributes:\n",
        ):
            assert markup not in prose, f"{path}: {markup}"
        # A command of TeX that was not understood stays a name.
        assert "\\" not in "".join(page.formulas), path
    assert Page((site / "theory/index.html").read_text()).formulas


def test_a_broken_link_fails_the_build(tmp_path):
    """The strict build reads links: one that leads nowhere is an error, in the repository's places too."""
    targets = ("missing.md", "../hf_diffusion_forcing/nowhere.md", "index.md#no-such-place")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Title\n\n" + "\n".join(f"[link]({target})" for target in targets))
    (tmp_path / ".mkdocs.yml").write_text(
        f"INHERIT: {ROOT / '.mkdocs.yml'}\nhooks: [{ROOT / 'scripts/site_hooks.py'}]\nnav: [index.md]\n"
        "plugins: [search]\nextra_css: []\nwatch: []\n"
    )
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(tmp_path / ".mkdocs.yml")]
    command += ["-d", str(tmp_path / "site")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode != 0
    for name in ("missing.md", "nowhere.md", "no-such-place"):
        assert name in result.stderr, result.stderr
