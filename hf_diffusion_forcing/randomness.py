"""Position-keyed noise: every number is a function of (seed of the row, position, purpose, channel).

Nothing is drawn from a stream, so a row's text does not depend on its batch, on the wavefront or on the order in which
positions are refined. The generator is splitmix64's finaliser in wrapping int64 arithmetic: the same bits on every
device.
"""

import math

import torch

STATE, GUMBEL = range(2)
"""Purposes: latent states (their start, and the noise mixed into them), and sampling."""

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_POSITION = -2960836687051489895  # 0xD6E8FEB86659FD99 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_SQRT_2 = 2**0.5


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift (torch shifts int64 arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def row_seeds(seed: int | list[int] | None, batch: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """One seed a row, int64 [batch].

    Args:
        seed: an int (row i uses seed + i), one int per row, or None (one is drawn from torch's global generator).
        batch: number of rows.

    Raises:
        ValueError: a list whose length is not `batch`.
    """
    if seed is None:
        # `torch.manual_seed` and `set_seed` decide it. It stays a tensor, so that torch.compile can trace the draw.
        base = torch.randint(0, 2**31 - 1, (), device="cpu")
        return (base + torch.arange(batch, device="cpu")).to(device)
    highest = seed if isinstance(seed, int) else max(seed, default=0)
    if highest + batch >= 2**63:
        raise ValueError(f"seed={highest} leaves no room for {batch} rows in 64 bits: use a smaller one.")
    if isinstance(seed, int):
        return torch.arange(seed, seed + batch, dtype=torch.int64, device=device)
    if len(seed) != batch:
        raise ValueError(f"seed has {len(seed)} entries for {batch} rows: pass an int, or one seed per row.")
    return torch.tensor(seed, dtype=torch.int64, device=device)


def fold_in(seeds: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """New seeds int64 [batch, width] from seeds [batch] or [batch, width] and one number a position [batch, width]."""
    seeds = seeds[:, None] if seeds.ndim == 1 else seeds
    return _mix(seeds * _GOLDEN + data * _POSITION)


def keyed_uniform(seeds: torch.Tensor, positions: torch.Tensor, purpose: int, channels: int) -> torch.Tensor:
    """Uniform numbers in the open interval (0, 1).

    Args:
        seeds: int64 [batch], or [batch, width] after `fold_in`.
        positions: int64 [batch, width], absolute positions.
        purpose: `STATE` or `GUMBEL`.
        channels: numbers a position.

    Returns:
        float32 [batch, width, channels].
    """
    seeds = seeds[:, None] if seeds.ndim == 1 else seeds
    key = _mix(seeds * _GOLDEN + positions * _POSITION + purpose)
    channel = torch.arange(1, channels + 1, device=positions.device) * _GOLDEN
    bits = _shift(_mix(key[..., None] + channel), 41)
    return (bits.float() + 0.5) * 2.0**-23


def keyed_truncated_normal(
    seeds: torch.Tensor, positions: torch.Tensor, purpose: int, channels: int, bound: float = 3.0
) -> torch.Tensor:
    """Standard normal numbers truncated at +-`bound`, float32 [batch, width, channels] (inverse CDF)."""
    edge = math.erf(bound / _SQRT_2)
    uniform = keyed_uniform(seeds, positions, purpose, channels)
    return torch.erfinv((2 * uniform - 1) * edge) * _SQRT_2


def keyed_gumbel(seeds: torch.Tensor, positions: torch.Tensor, channels: int) -> torch.Tensor:
    """Gumbel(0, 1) numbers, float32 [batch, width, channels]: argmax(logits + gumbel) samples softmax(logits)."""
    return -torch.log(-torch.log(keyed_uniform(seeds, positions, GUMBEL, channels)))
