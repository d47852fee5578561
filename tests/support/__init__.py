"""What tests share: checkpoints, small models, and inputs for generate()."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig

from hf_diffusion_forcing import RavenConfig, RavenForCausalLM, registration

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
HUGINN_MINI = FIXTURES / "huginn-mini"
FAMILIES = {
    "huginn": HUGINN_MINI,
    "llama": FIXTURES / "raven-llama-tiny",
    "olmo": FIXTURES / "raven-olmo-tiny",
    "ouro": FIXTURES / "ouro-tiny",
    "nanbeige": FIXTURES / "nanbeige-tiny",
    "parcae": FIXTURES / "parcae-tiny",
    "hrm_text": FIXTURES / "hrm-text-tiny",
}
"""A checkpoint of every family and layout; all but the first have random weights."""


class Classes(NamedTuple):
    """A family's registered classes: its config, its model without a head, and its models with each."""

    config: type
    base: type
    causal: type
    sequence: type
    token: type


_REGISTERED = {each[0].model_type: Classes(*each) for each in registration.CLASSES}
_TYPES = {name: AutoConfig.from_pretrained(path).model_type for name, path in FAMILIES.items()}
CLASSES = {name: _REGISTERED[kind] for name, kind in _TYPES.items() if kind in _REGISTERED}
NATIVE = list(CLASSES)
"""Families with a base model and classifiers of this package; those of the others are transformers' own."""
INJECTED = tuple(name for name, classes in CLASSES.items() if classes.causal.has_injected_embedding)
"""Families that diffusion forcing is defined for."""
EMBEDDABLE = tuple(name for name in FAMILIES if not (name in CLASSES and CLASSES[name].causal.reads_token_ids))
"""Families that read embeddings in place of ids."""
GATED = tuple(name for name, classes in CLASSES.items() if classes.causal.has_exit_gate)
"""Families with an exit gate of their own."""
SAMPLERS = {
    "plain": {},
    "autoregressive": {"sampler": "autoregressive"},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.1},
    "diffusion_forcing": {"sampler": "diffusion_forcing", "wavefront": 4, "inner_recurrence": 2},
    "speculative_wavefront": {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 3},
}
"""Every sampler, with settings for a small model."""


def tiny_config(**changes) -> RavenConfig:
    sizes = {
        "vocab_size": 61,
        "n_embd": 32,
        "n_heads": 2,
        "intermediate_size": 48,
        "n_layers_in_prelude": 1,
        "n_layers_in_recurrent_block": 2,
        "n_layers_in_coda": 1,
        "mean_recurrence": 6,
        "mean_backprop_depth": 3,
        "block_size": 128,
    }
    return RavenConfig(**sizes | changes)


@cache
def random_model() -> RavenForCausalLM:
    """One small model for all examples of a property."""
    torch.manual_seed(0)
    return RavenForCausalLM(tiny_config()).eval()


def left_pad(rows: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def new_tokens(sequences: torch.Tensor, prompt_length: int) -> list[list[int]]:
    return sequences[:, prompt_length:].tolist()
