"""docs/compatibility.md says what `scripts/write_compatibility.py` measures, and the script overlooks nothing."""

import importlib.util
import sys
from pathlib import Path

import pytest
from transformers import GenerationConfig

SCRIPT = Path(__file__).parent.parent / "scripts" / "write_compatibility.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT.stem] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[SCRIPT.stem]


def tables(text):
    return [line for line in text.splitlines() if line.startswith(("|", "#"))]


def test_the_page_is_what_is_measured(script):
    measured = script.page()
    assert tables(script.PAGE.read_text()) == tables(measured), "run python scripts/write_compatibility.py"
    assert script.is_current(measured)


def test_a_page_is_current_whatever_the_versions(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    assert not script.is_current("Made with a 1.\n| row |\n")
    script.PAGE.write_text("Made with a 1.\n| row |\n")
    assert script.is_current("Made with a 2.\n| row |\n")
    assert not script.is_current("Made with a 1.\n| other row |\n")


def test_an_unknown_field_needs_a_probe(script, monkeypatch):
    known = GenerationConfig().to_dict()
    monkeypatch.setattr(GenerationConfig, "to_dict", lambda self: known | {"brand_new": None, "_private": None})
    with pytest.raises(script.ProbeError, match=r"no probe: brand_new\."):
        script.page()


def test_a_field_that_is_gone_takes_its_probe_along(script, monkeypatch):
    left = {name: value for name, value in GenerationConfig().to_dict().items() if name != "top_h"}
    monkeypatch.setattr(GenerationConfig, "to_dict", lambda self: left)
    with pytest.raises(script.ProbeError, match=r"does not take: top_h\."):
        script.check_probes()


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
def test_what_is_not_in_order_is_not_written_down(script, argument, value, message):
    probe = script.Probe(argument, {argument: value})
    with script.quiet(), pytest.raises(script.ProbeError, match=message):
        script.find(script.tiny_model(), "diffusion_forcing", probe, {})


def test_check(script, monkeypatch):
    monkeypatch.setattr(script, "page", lambda: "another page")
    before = script.PAGE.read_text()
    with pytest.raises(SystemExit, match="stale"):
        script.main(check=True)
    assert script.PAGE.read_text() == before
    monkeypatch.setattr(script, "page", script.PAGE.read_text)
    script.main(check=True)
