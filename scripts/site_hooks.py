"""MkDocs hooks: add pages from outside docs/, complete the navigation, and convert formulas to MathML.

MkDocs calls these functions (`hooks` in .mkdocs.yml). Links are written for the repository. The hooks point links that
leave docs/ to the copy of their target in the site.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "hf_diffusion_forcing/checkpoints/bundled/README.md": "model-card.md",
    "hf_diffusion_forcing/checkpoints/bundled/convergence.png": "images/convergence.png",
    "tests/fixtures/python-source/README.md": "model-card-python-source.md",
}
"""Maps files outside docs/ to their paths in the site."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")
PRIME = re.compile(r"<msup>(<mi>\w)</mi><mi>&#x02032;</mi></msup>")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from outside docs/, and put every page into the navigation."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    listed = set(named(config.nav))
    rest = sorted(page.src_uri for page in files.documentation_pages() if page.src_uri not in listed)
    config.nav = filled(config.nav, rest)
    return files


def named(entries: list) -> Iterator[str]:
    """Yield the paths in a navigation."""
    for entry in entries:
        for place in entry.values() if isinstance(entry, dict) else [entry]:
            yield from named(place) if isinstance(place, list) else [place]


def filled(entries: list, rest: list[str]) -> list:
    """Return the navigation with `folder/*` replaced by the pages of that folder that it does not list.

    `*` alone stands for the unlisted pages outside any folder.
    """
    result = []
    for entry in entries:
        if isinstance(entry, dict):
            result.append({title: filled(at, rest) if isinstance(at, list) else at for title, at in entry.items()})
        elif entry.endswith("*"):
            folder = entry.removesuffix("*")
            result += [place for place in rest if (place.startswith(folder) if folder else "/" not in place)]
        else:
            result.append(entry)
    return result


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links between files of the repository as links between pages of the site.

    A target that is not in the site stays unchanged, and the strict build fails on it.
    """
    place = page.file.src_uri
    folder = posixpath.dirname(repository_path(place))

    def turned(link: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        there = ELSEWHERE.get(target, target.removeprefix("docs/") if target.startswith("docs/") else None)
        return link[1] if there is None else posixpath.relpath(there, posixpath.dirname(place) or ".")

    return LINK.sub(turned, markdown)


def repository_path(place: str) -> str:
    """Return the path in the repository of a file of the site."""
    return next((source for source, there in ELSEWHERE.items() if there == place), f"docs/{place}")


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Convert formulas to MathML, which browsers render without a script."""

    def mathml(formula: re.Match) -> str:
        tex = html.unescape(formula[2])
        drawn = convert(tex[2:-2], display="block" if formula[1] == "div" else "inline")
        # A prime is already small: as a superscript it would shrink twice.
        return PRIME.sub(r"\1&#x02032;</mi>", drawn)

    return FORMULA.sub(mathml, content)
