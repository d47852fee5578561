"""Rotary positions: their angles, and which channels they rotate."""

import torch
from transformers import PreTrainedConfig

from ..compat import ROPE_INIT_FUNCTIONS

ROPE_TYPES = ("default", "llama3")
"""The supported `rope_parameters["rope_type"]`. Other types change with the text's length or scale attention."""


def check_rope_type(rope_scaling: dict | None) -> None:
    """ValueError for an unsupported kind of RoPE scaling; the key may be `rope_type` or `type`."""
    kind = (rope_scaling or {}).get("rope_type", (rope_scaling or {}).get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type={kind!r} of rope_parameters is not supported: use {' or '.join(ROPE_TYPES)}.")


def inverse_frequencies(config: PreTrainedConfig) -> list[float]:
    """Radians per position of each pair of channels, head_dim / 2 float32 values.

    Args:
        config: with `head_dim` and transformers' `rope_parameters`.
    """
    parameters = config.rope_parameters
    with torch.device("cpu"):  # the default device may be "meta"
        if parameters["rope_type"] == "llama3":
            return ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].tolist()
        pairs = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        return (1.0 / parameters["rope_theta"] ** pairs).tolist()


def rotations(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """The rotations of queries and keys: complex64 [batch, width, 1, head_dim / 2].

    In a graph of torch.compile they are cosines and sines, float32 [batch, width, 1, head_dim / 2, 2]: its compiler has
    no kernels for complex numbers.

    Args:
        positions: int64 [batch, width]; -1 (padding) is treated as 0.
        frequencies: float32 [head_dim / 2], radians per position.
    """
    angles = (positions.clamp_min(0)[..., None].float() * frequencies)[:, :, None]
    if torch.compiler.is_compiling():
        return torch.stack((angles.cos(), angles.sin()), dim=-1)
    return torch.polar(torch.ones_like(angles), angles)


def rotate_pairs(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of neighbouring channels, (0, 1), (2, 3), ... (Huginn).

    Args:
        x: [batch, width, heads, head_dim].
        rotary: from `rotations`.

    Returns:
        float32, shaped as x.
    """
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    if not rotary.is_complex():
        return torch.stack(_turned(*pairs.unbind(-1), rotary), dim=-1).view(x.shape)
    return torch.view_as_real(torch.view_as_complex(pairs) * rotary).view(x.shape)


def rotate_halves(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Like `rotate_pairs`, but pair channel i with channel i + head_dim / 2 (Llama and its descendants)."""
    halves = x.float().chunk(2, dim=-1)
    if not rotary.is_complex():
        return torch.cat(_turned(*halves, rotary), dim=-1)
    turned = torch.complex(*halves) * rotary
    return torch.cat((turned.real, turned.imag), dim=-1)


def _turned(real: torch.Tensor, imag: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The product of complex numbers, by real ones."""
    cos, sin = rotary.unbind(-1)
    return real * cos - imag * sin, real * sin + imag * cos
