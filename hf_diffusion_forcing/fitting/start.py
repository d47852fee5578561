"""The start head: a map of low rank, fitted by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..models.decoding_heads import DecodingHeads
from .own_text import TextBatch

RIDGE = 1e-3
"""The penalty on the map, in units of the mean square of its inputs."""


@torch.no_grad()
def neighbours(model, batch: TextBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each depth that the batch has states of, those on the left of the new positions, [n, channels], with the new
    positions' injected embeddings and their last states."""
    e, new = model.embed(batch.ids, batch.at), batch.is_new[:, 1:]
    for states in batch.states.values():
        yield e[:, 1:][new], states[:, :-1][new], batch.states[batch.depth][:, 1:][new]


@torch.no_grad()
def fit_start(model, batches: Sequence[TextBatch], rank: int) -> dict[str, torch.Tensor]:
    """The best map of a rank from embedding and state on the left to last state, by ridge regression.

    The states on the left are those of every depth that was kept: in a wave, the neighbour has only begun. Sums are
    in float64, on the CPU. (Reduced-rank regression: Izenman, Journal of Multivariate Analysis 5, 1975.)

    Args:
        rank: at most; the number of channels is enough for any map.
    """
    squares = products = torch.zeros(())
    for batch in batches:
        for e, left, last in neighbours(model, batch):
            e, left, last = (x.to("cpu", torch.float64) for x in (e, left, last))
            inputs = torch.cat((e, left, torch.ones_like(e[:, :1])), dim=-1)
            squares, products = squares + inputs.T @ inputs, products + inputs.T @ last
    count = squares[-1, -1]
    means, mean = squares[-1, :-1] / count, products[-1] / count
    covariance = squares[:-1, :-1] / count - torch.outer(means, means)
    penalty = RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
    crossed = products[:-1] / count - torch.outer(means, mean)
    best = torch.linalg.solve(covariance + penalty, crossed)
    # The directions in which the predictions vary most.
    kept = torch.linalg.eigh(best.T @ covariance @ best)[1].flip(-1)[:, :rank]
    tensors = {"down": (best @ kept).T, "up": kept, "mean": mean - means @ best @ kept @ kept.T}
    return {f"start.{name}": tensor.float().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def explained(model, heads: DecodingHeads, batches: Sequence[TextBatch]) -> float:
    """The share of the last states' variance that the start head predicts, with states on the left at full depth."""
    error, total, summed, count = 0.0, 0.0, torch.zeros(()), 0
    for batch in batches:
        *_, (e, left, last) = neighbours(model, batch)
        error += float((heads.start(e, left) - last).double().square().sum())
        total, summed = total + float(last.double().square().sum()), summed + last.double().sum(0)
        count += len(last)
    return 1 - error / (total - float(summed.square().sum()) / count)
