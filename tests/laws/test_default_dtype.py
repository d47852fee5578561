"""Law 10: torch's default dtype changes no logits and no text."""

import traceback
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import EXIT_CRITERIA, LATENT_PROCESSORS, RavenForCausalLM
from support import FAMILIES, GATED, INJECTED, left_pad, tiny_config
from support.matrix import cases, crossed

DEFAULTS = [torch.bfloat16, torch.float64]
ROWS = [[55, 2, 103, 95, 53], [61, 88], [37, 19, 7, 120, 69, 125, 106, 81], [14]]
SEEDED = {"seed": 3, "max_new_tokens": 6, "num_steps": 4, "do_sample": True}
WAVE = {"sampler": "diffusion_forcing", "wavefront": 4}
SETTINGS = {
    "plain": {"do_sample": False},
    "autoregressive": {"sampler": "autoregressive"},
    "adaptive prefill": {"sampler": "adaptive", "adaptive_prefill": True, "exit_threshold": 0.2},
    "lossless": {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 2},
    "lossless auto": {"sampler": "speculative_wavefront", "draft_depth": "auto"},
    "wave auto": {"sampler": "diffusion_forcing", "wavefront": "auto"},
    "momentum": WAVE | {"embedding_momentum": 0.1},
    **{name: {"sampler": "adaptive", "exit_criterion": name} for name in EXIT_CRITERIA if name != "learned"},
    **{name: WAVE | {"latent_processors": [name]} for name in LATENT_PROCESSORS},
    **{f"{name} noise": WAVE | {"state_noise": 0.1, "noise_schedule": name} for name in ("linear", "square_root")},
}


def fits(family, name):
    """The exit gate needs a model with one, diffusion forcing one with an injected embedding."""
    needs_gate, forces = name == "exit_gate", SETTINGS[name].get("sampler") == "diffusion_forcing"
    return (family in GATED or not needs_gate) and (family in INJECTED or not forces)


CASES = [(family, name) for family in FAMILIES for name in SETTINGS if fits(family, name)]
KEPT = [("huginn", "linear noise"), ("llama", "entropy"), ("ouro", "exit_gate"), ("olmo", "lossless")]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def load(name):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


class MadeAs(TorchDispatchMode):
    """Collects the lines of this package that make tensors of a dtype."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype, self.lines = dtype, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == self.dtype for leaf in tree_leaves(made)):
            callers = [frame for frame in traceback.extract_stack()[:-1] if "/torch/" not in frame.filename]
            if "hf_diffusion_forcing" in callers[-1].filename:
                self.lines.add(f"{callers[-1].filename}:{callers[-1].lineno}")
        return made


def test_lines_that_make_such_tensors_are_found():
    """The next test can fail."""
    model = RavenForCausalLM(tiny_config()).double()
    with MadeAs(torch.float64) as made:
        model(torch.tensor([[1, 2]]), num_steps=1)
    assert any("norm.py" in line for line in made.lines)


@pytest.mark.parametrize(("name", "settings"), cases(CASES, KEPT))
def test_no_tensor_takes_the_default_dtype(name, settings):
    """Neither when the model is made, nor in a call or a training step."""
    with default_dtype(torch.float64), MadeAs(torch.float64) as made:
        model = load(name)
        model.generate(**left_pad(ROWS), **SEEDED | SETTINGS[settings])
        ids = torch.tensor(ROWS[:1])
        model.train()(ids, labels=ids).loss.backward()
    assert not made.lines


@pytest.mark.parametrize(
    ("default", "name", "settings"),
    cases([(default, *case) for default in DEFAULTS for case in KEPT], [(torch.bfloat16, *case) for case in KEPT]),
)
def test_texts_are_the_same(default, name, settings):
    expected = load(name).generate(**left_pad(ROWS), **SEEDED | SETTINGS[settings])
    with default_dtype(default):
        assert load(name).generate(**left_pad(ROWS), **SEEDED | SETTINGS[settings]).tolist() == expected.tolist()


@pytest.mark.parametrize(("default", "name"), crossed(DEFAULTS, FAMILIES, keep=[(d, "ouro") for d in DEFAULTS]))
@torch.no_grad()
def test_logits_are_the_same(default, name):
    """Also those of a model made before, whose rotation is made in the call."""
    ids, settings = torch.tensor([[81, 58, 32, 68, 51]]), {"num_steps": 3, "seeds": torch.tensor([1])}
    before = load(name)
    expected = load(name)(ids, **settings).logits
    with default_dtype(default):
        for model in (before, load(name)):
            logits = model(ids, **settings).logits
            assert torch.equal(logits, expected) and logits.dtype == torch.float32


@pytest.mark.parametrize("scaling", [None, LLAMA3])
@pytest.mark.parametrize("default", DEFAULTS)
@torch.no_grad()
def test_far_positions_are_rotated_the_same(default, scaling):
    """Rounded frequencies would show most where positions are large."""
    config = {"block_size": 1024, "layout": "llama", "rope_theta": 5e5, "rope_scaling": scaling}
    model = RavenForCausalLM(tiny_config(**config))
    ids = torch.arange(1000)[None] % 61
    common = {"num_steps": 1, "seeds": torch.tensor([1]), "logits_to_keep": 200}
    with default_dtype(default):
        other = RavenForCausalLM(model.config).float()
        other.load_state_dict(model.state_dict())
        found = other(ids, **common).logits
    assert torch.equal(found, model(ids, **common).logits)
