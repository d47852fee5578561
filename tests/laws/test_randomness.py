import math

import pytest
import torch

from hf_diffusion_forcing.randomness import (
    GUMBEL,
    STATE,
    fold_in,
    keyed_gumbel,
    keyed_truncated_normal,
    keyed_uniform,
    row_seeds,
)

SEEDS = torch.arange(4)
POSITIONS = torch.arange(50).expand(4, 50)


def test_a_number_depends_on_its_key_alone():
    grid = keyed_uniform(SEEDS, POSITIONS, STATE, 8)
    one = keyed_uniform(SEEDS[2:3], torch.tensor([[37]]), STATE, 8)
    assert torch.equal(grid[2, 37], one[0, 0])
    assert torch.equal(grid[..., :3], keyed_uniform(SEEDS, POSITIONS, STATE, 3))


def test_known_values():
    """The same bits everywhere: what the definition says, computed with Python's integers."""
    got = keyed_uniform(torch.tensor([0, 123456789]), torch.tensor([[0, 5], [0, 5]]), GUMBEL, 1)
    splitmix = reference_uniform([0, 123456789], [0, 5], GUMBEL)
    assert got[..., 0].tolist() == splitmix


def reference_uniform(seeds, positions, purpose):
    """The same generator with Python integers."""

    mask = 2**64 - 1

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    def uniform(seed, position):
        key = mix((seed * 0x9E3779B97F4A7C15 + position * 0xD6E8FEB86659FD99 + purpose) & mask)
        return ((mix((key + 0x9E3779B97F4A7C15) & mask) >> 41) + 0.5) * 2.0**-23

    return [[uniform(seed, position) for position in positions] for seed in seeds]


def test_seeds_positions_and_purposes_are_independent():
    numbers = torch.stack([keyed_uniform(SEEDS, POSITIONS, purpose, 16) for purpose in (STATE, GUMBEL)])
    assert numbers.unique().numel() > 0.999 * numbers.numel()
    correlation = torch.corrcoef(numbers.flatten(1))[0, 1]
    assert abs(correlation) < 0.05


def test_distributions():
    uniform = keyed_uniform(SEEDS, POSITIONS, STATE, 200)
    assert uniform.min() > 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    normal = keyed_truncated_normal(SEEDS, POSITIONS, STATE, 200)
    assert normal.abs().max() <= 3.0001
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 0.9866) < 0.02
    gumbel = keyed_gumbel(SEEDS, POSITIONS, 200)
    assert torch.isfinite(gumbel).all()
    assert abs(gumbel.mean() - 0.5772) < 0.02 and abs(gumbel.var() - math.pi**2 / 6) < 0.05


def test_gumbel_argmax_samples_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    seeds = torch.arange(20_000)
    chosen = (logits + keyed_gumbel(seeds, torch.zeros(20_000, 1, dtype=torch.long), 4)[:, 0]).argmax(-1)
    counts = torch.bincount(chosen, minlength=4)
    expected = 20_000 * logits.softmax(-1)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 0.1 % of fair samples lie above, 3 degrees of freedom


def test_fold_in_changes_every_row():
    folded = fold_in(SEEDS, torch.tensor([[1, 2]]).expand(4, 2))
    assert folded.unique().numel() == 8


def test_row_seeds():
    assert row_seeds(5, 3).tolist() == [5, 6, 7]
    assert row_seeds([9, 9], 2).tolist() == [9, 9]
    torch.manual_seed(0)
    first = row_seeds(None, 2)
    torch.manual_seed(0)
    assert torch.equal(first, row_seeds(None, 2))
    assert not torch.equal(first, row_seeds(None, 2))
    with pytest.raises(ValueError, match="2 entries for 3 rows"):
        row_seeds([1, 2], 3)
