"""A precision that is slow on this processor: one warning from generate(), and float32 for the commands."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from hf_diffusion_forcing import precision
from hf_diffusion_forcing.command_line.console import load
from hf_diffusion_forcing.compat import has_matrix_instructions
from support import FIXTURES
from support.commands import run

SOURCE = FIXTURES / "python-source"
"""Saved in bfloat16."""
IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(params=[False, True], ids=["slow", "fast"])
def is_fast(request, monkeypatch):
    """A processor without these instructions, and one that has them."""
    transformers_logging.warning_once.cache_clear()
    monkeypatch.setattr(precision, "has_matrix_instructions", lambda dtype: request.param)
    return request.param


def test_this_processor_says_what_it_has():
    assert has_matrix_instructions(torch.float32)
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert not has_matrix_instructions(torch.bfloat16) and not has_matrix_instructions(torch.float16)
        assert precision.is_slow(torch.bfloat16, "cpu") and not precision.is_slow(torch.bfloat16, "cuda")
    assert not precision.is_slow(torch.float32, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", [False, "autoregressive", "diffusion_forcing"])
def test_one_warning(is_fast, warnings, dtype, sampler):
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=dtype).eval()
    for _ in range(2):
        model.generate(IDS, max_new_tokens=2, num_steps=2, sampler=sampler)
    said = [record.message for record in warnings.records]
    assert len(said) == (0 if is_fast else 1)
    assert all("dtype=torch.float32" in message and str(dtype)[6:] in message for message in said)


def test_float32_is_never_slow(is_fast, warnings):
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()
    model.generate(IDS, max_new_tokens=2, num_steps=2)
    assert not warnings.records


@pytest.mark.parametrize("asked", ["auto", "bfloat16", "float32"])
@pytest.mark.parametrize("device", [None, "cpu", "auto"])
def test_commands_load_a_fast_precision(is_fast, asked, device, capsys):
    model, _ = load(str(SOURCE), asked, device_map=device)
    is_saved = asked == "bfloat16" or (asked == "auto" and (is_fast or model.device.type != "cpu"))
    assert model.dtype == (torch.bfloat16 if is_saved else torch.float32)
    assert ("--dtype bfloat16 keeps them" in capsys.readouterr().err) == (asked == "auto" and not is_saved)


def test_a_command(is_fast):
    result = run("generate", SOURCE, "--prompt", "def f", "--max-new-tokens", 2, "--num-steps", 2)
    assert result.exit_code == 0
    assert ("loaded in float32" in result.stderr) == (not is_fast)
