"""Every code block of README and docs runs: Python in order in one namespace per file, our commands as commands."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "hf_diffusion_forcing/checkpoints").glob("*/README.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = ("hf-diffusion-forcing", "python -m hf_diffusion_forcing")


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page):
    namespace = {"__name__": "docs"}
    for number, block in enumerate(blocks(page, "python")):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, f"{page.name} block {number}", "exec"), namespace)


def commands():
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in map(str.strip, line.split("&&")):
                    if command.startswith(OURS) and command != OURS[0]:
                        yield command


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands(command):
    """In a shell, with the installed command."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=300, env=os.environ | {"PATH": path}
    )
    assert result.returncode == 0, result.stderr


def test_no_other_language_hides_from_the_tests():
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text())}
    assert kinds <= {"python", "bash", "text", "bibtex"}


def test_the_gate_runs_the_readmes_install_commands():
    gate = (ROOT / ".ci/run").read_text()
    for command in re.findall(r"^pip install .*$", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert command in gate


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
