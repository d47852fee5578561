"""docs/compatibility.md says what is measured, and no argument is overlooked."""

import re
import subprocess
import sys

import pytest
from transformers import GenerationConfig

from hf_diffusion_forcing.evaluation.compatibility.findings import find, quiet
from hf_diffusion_forcing.evaluation.compatibility.page import is_current, page
from hf_diffusion_forcing.evaluation.compatibility.probes import Probe, ProbeError, check_probes
from hf_diffusion_forcing.evaluation.compatibility.subjects import tiny_model
from support import ROOT

PAGE = ROOT / "docs" / "compatibility.md"


def tables(text):
    return [line for line in text.splitlines() if line.startswith(("|", "#"))]


@pytest.mark.full
def test_the_page_is_what_is_measured(tmp_path):
    measured = page()
    assert tables(PAGE.read_text()) == tables(measured), "run python scripts/write_compatibility.py"
    assert is_current(PAGE, measured)


def test_a_refusal_says_what_to_do():
    refused = [row for row in tables(PAGE.read_text()) if "| refused |" in row]
    assert refused
    silent = [row for row in refused if not re.search(r"\b(leave|pass|use|call|load|set)\b", row.split("|")[-2], re.I)]
    assert not silent


def test_a_page_is_current_whatever_the_versions(tmp_path):
    path = tmp_path / "page.md"
    assert not is_current(path, "Measured with a 1.\n| row |\n")
    path.write_text("Measured with a 1.\n| row |\n")
    assert is_current(path, "Measured with a 2.\n| row |\n")
    assert not is_current(path, "Measured with a 1.\n| other row |\n")


def test_an_unknown_field_needs_a_probe(monkeypatch):
    known = GenerationConfig().to_dict()
    monkeypatch.setattr(GenerationConfig, "to_dict", lambda self: known | {"brand_new": None, "_private": None})
    with pytest.raises(ProbeError, match=r"no probe: brand_new\."):
        page()


def test_a_field_that_is_gone_takes_its_probe_along(monkeypatch):
    left = {name: value for name, value in GenerationConfig().to_dict().items() if name != "top_h"}
    monkeypatch.setattr(GenerationConfig, "to_dict", lambda self: left)
    with pytest.raises(ProbeError, match=r"does not take: top_h\."):
        check_probes()


def raising(row, ids):
    raise KeyError("no such prefix")


def crashing_with_a_sampler(model, input_ids, generation_config, **kwargs):
    return None + 1 if generation_config.sampler else input_ids


def unlike_autoregression(model, input_ids, generation_config, **kwargs):
    return input_ids[:, :2] if generation_config.sampler == "autoregressive" else input_ids[:, :1]


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("temperature", 0.5, "has no effect"),
        ("prefix_allowed_tokens_fn", raising, "crashes with KeyError"),
        ("custom_generate", crashing_with_a_sampler, "crashes with TypeError"),
        ("custom_generate", unlike_autoregression, r"gives sequences \[\[3\]\] where it must be \[\[3, 1\]\]"),
    ],
)
def test_what_is_not_in_order_is_not_written_down(argument, value, message):
    probe = Probe(argument, {argument: value})
    with quiet(), pytest.raises(ProbeError, match=message):
        find(tiny_model(), "diffusion_forcing", probe, {})


@pytest.mark.slow
def test_check(tmp_path):
    """The script itself, against a page that says something else."""
    stale = tmp_path / "page.md"
    stale.write_text("another page")
    command = [sys.executable, str(ROOT / "scripts" / "write_compatibility.py"), "--output", str(stale)]
    result = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and "stale" in result.stderr
    assert stale.read_text() == "another page"
