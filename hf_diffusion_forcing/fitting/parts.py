"""The parts of the heads: their first tensors, their losses, and how often each is right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..models.decoding_heads import DecodingHeads
from .own_text import TextBatch


def small(generator: torch.Generator, rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
    """A random map [rows, columns] that keeps the size of its input, times `scale`."""
    return torch.randn(rows, columns, generator=generator) * (scale / columns**0.5)


def first_readout(depth: int, channels: int, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A readout that changes nothing yet."""
    return {
        f"readout.{depth}.down": small(generator, rank, channels),
        f"readout.{depth}.up": torch.zeros(channels, rank),
    }


def readout_loss(model, heads: DecodingHeads, batch: TextBatch, depth: int) -> torch.Tensor:
    """Cross-entropy of the corrected readout against the distribution of full depth."""
    logits = model.decode(heads.corrected(batch.states[depth], depth), batch.at)
    return F.cross_entropy(logits[batch.is_new].float(), batch.truth(model)[batch.is_new])


@torch.no_grad()
def readout_share(model, heads: DecodingHeads | None, batches: Sequence[TextBatch], depth: int) -> float:
    """Share of new positions whose readout at a depth is that of full depth; without heads, of the plain readout."""
    right = count = 0
    for batch in batches:
        states = batch.states[depth]
        logits = model.decode(states if heads is None else heads.corrected(states, depth), batch.at)
        same = (logits.argmax(-1) == batch.truth(model).argmax(-1))[batch.is_new]
        right, count = right + int(same.sum()), count + same.numel()
    return right / count


def first_extra(hidden: int, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """An extra-token cell."""
    return {
        "extra.down": small(generator, rank, 2 * hidden),
        "extra.up": small(generator, hidden, rank, 0.2),
        "extra.scale": torch.ones(hidden),
    }


def extra_chain(model, heads: DecodingHeads, batch: TextBatch, depth: int, count: int):
    """Yield, for each distance, the cell's logits [batch, width, vocabulary] after the text's own tokens, and the
    positions, bool [batch, width], whose truth is known: that of the position `distance` to the right."""
    hidden = heads.extra_start(model, batch.states[depth])
    for distance in range(1, count + 1):
        hidden = heads.extra_step(model, hidden, batch.ids.roll(-distance, 1))
        known = batch.is_new & batch.is_new.roll(-distance, 1)
        known[:, -distance:] = False
        yield heads.extra_logits(model, hidden), known


def extra_loss(model, heads: DecodingHeads, batch: TextBatch, depth: int, count: int) -> torch.Tensor:
    """Cross-entropy of the guesses against the distributions of full depth, summed over distances."""
    truth, total = batch.truth(model), torch.zeros((), device=batch.ids.device)
    for distance, (logits, known) in enumerate(extra_chain(model, heads, batch, depth, count), start=1):
        if known.any():
            total = total + F.cross_entropy(logits[known].float(), truth.roll(-distance, 1)[known])
    return total


@torch.no_grad()
def extra_shares(model, heads: DecodingHeads, batches: Sequence[TextBatch], depth: int, count: int) -> list[float]:
    """For each distance, the share of guesses that are right, with all before them, behind a right draft."""
    right, made = [0] * count, [0] * count
    for batch in batches:
        truth, good = batch.truth(model).argmax(-1), None
        for distance, (logits, known) in enumerate(extra_chain(model, heads, batch, depth, count)):
            same = logits.argmax(-1) == truth.roll(-distance - 1, 1)
            good = same if good is None else good & same
            right[distance] += int(good[known].sum())
            made[distance] += int(known.sum())
    return [share / max(number, 1) for share, number in zip(right, made, strict=True)]


def first_probe(channels: int, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """An exit probe."""
    return {
        "probe.down": small(generator, rank, 2 * channels),
        "probe.bias": torch.zeros(rank),
        "probe.out": small(generator, 1, rank, 0.2)[0],
        "probe.change": torch.ones(1),
        "probe.offset": torch.zeros(1),
    }


def probe_loss(heads: DecodingHeads, batch: TextBatch) -> torch.Tensor:
    """Cross-entropy of whether a readout differs from that of full depth."""
    losses = [
        F.binary_cross_entropy_with_logits(heads.exit_logit(after, before), differs.float())
        for before, after, differs in batch.pairs
    ]
    return torch.stack(losses).mean()
