"""Every code block of README and docs runs: Python in order in one namespace per file, our commands as commands.

A page's server runs while the page's Python does, on a free port instead of the default one. Texts are short and have
few recurrences where a page says neither.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

import hf_diffusion_forcing
from hf_diffusion_forcing import (
    DRAFT_SOURCES,
    EXIT_CRITERIA,
    LATENT_PROCESSORS,
    AdaptiveConfig,
    AutoregressiveConfig,
    DiffusionForcingConfig,
    SpeculativeWavefrontConfig,
)
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from hf_diffusion_forcing.settings.presets import PRESET_SAMPLERS, PRESETS
from hf_diffusion_forcing.settings.sampler_config import SAMPLER_CONFIGS
from support import ROOT
from support.commands import run
from support.markdown import BLOCK
from support.matrix import cases
from support.serving import serving

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "hf_diffusion_forcing/checkpoints").glob("*/README.md"))
OURS = ("hf-diffusion-forcing", "python -m hf_diffusion_forcing")
SERVE = "hf-diffusion-forcing serve"


def blocks(page, language):
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page):
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in map(str.strip, line.split("&&")):
                if command.startswith(OURS) and command != OURS[0]:
                    yield command


def is_server(command):
    return command.startswith(SERVE) and "--help" not in command and "--plan" not in command


@pytest.fixture
def soon_done(monkeypatch, brief):
    monkeypatch.setattr(hf_diffusion_forcing, "bundled_checkpoint", lambda: brief)


@pytest.mark.usefixtures("soon_done")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python(page):
    namespace = {"__name__": "docs"}
    with contextlib.ExitStack() as running:
        # What a page registers is gone after it.
        for registry in (DRAFT_SOURCES, EXIT_CRITERIA, LATENT_PROCESSORS, SAMPLERS, SAMPLER_CONFIGS):
            running.enter_context(patch.dict(registry))
        port = 8000
        for server in filter(is_server, commands(page)):
            port = running.enter_context(serving(*shlex.split(server.removeprefix(SERVE))))
        for number, block in enumerate(blocks(page, "python")):
            code = block.replace("localhost:8000", f"localhost:{port}")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(code, f"{page.name} block {number}", "exec"), namespace)


ONCE = sorted({command for page in PAGES for command in commands(page) if not is_server(command)})


def in_a_shell(script):
    """What a shell prints, with the installed commands."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=300, env=os.environ | {"PATH": path}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def one_of_each(commands):
    """One command line of every command, with a bound on the new tokens if some line has one."""
    ordered = sorted(commands, key=lambda line: ("--max-new-tokens" in line, len(line)))
    return list({tuple(line.split()[:2]): line for line in ordered}.values())


@pytest.mark.usefixtures("soon_done")
@pytest.mark.parametrize("command", cases(ONCE, keep=one_of_each(ONCE)))
def test_commands(command, request):
    """In this process, with the words that a shell makes of the command."""
    if "lm-eval --model" in command:
        request.getfixturevalue("few_tasks")
    words = in_a_shell(f"printf '%s\\0' {command}").split("\0")[:-1]
    (ours,) = (each.split() for each in OURS if command.startswith(each))
    result = run(*words[len(ours) :])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("command", ONCE)
def test_commands_in_a_shell(command):
    in_a_shell(command)


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


def test_the_table_of_settings_is_the_configs():
    """Every field of every config has a row, with its default."""
    text = (ROOT / "docs/settings.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \| .* \|$", text, re.MULTILINE))
    for config_class in (AdaptiveConfig, DiffusionForcingConfig):
        for name, default in config_class().to_dict().items():
            assert rows[name] == json.dumps(default).replace("null", "None").replace("false", "False"), name
    for config_class in (AutoregressiveConfig, SpeculativeWavefrontConfig):
        assert set(config_class.fields()) <= set(rows)


def test_the_table_of_presets_is_the_presets():
    text = (ROOT / "docs/settings.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (`.*`|its defaults) \|$", text, re.MULTILINE)
    written = {}
    for name, sampler in PRESET_SAMPLERS.items():
        settings = ", ".join(f"{key}={value!r}" for key, value in PRESETS["huginn_raven"][name].items())
        written[name] = (sampler, f"`{settings}`" if settings else "its defaults")
    assert {name: (sampler, settings) for name, sampler, settings in rows} == written


def test_the_tables_of_hooks_are_the_registries():
    sections = (ROOT / "docs/hooks.md").read_text().split("\n## ")
    for title, registry in (("Exit criteria", EXIT_CRITERIA), ("Latent processors", LATENT_PROCESSORS)):
        (section,) = (part for part in sections if part.startswith(title))
        table = section.split("\n### ")[0]
        assert list(registry) == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
