"""The loss that trains Ouro and its exit gate together (arXiv 2510.25741, section 3)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F


def expected_exit_loss(
    exits: torch.Tensor,
    logits: Iterable[torch.Tensor],
    labels: torch.Tensor,
    entropy_weight: float,
    num_items_in_batch: int | torch.Tensor | None = None,
    shift_labels: torch.Tensor | None = None,
    ignore_index: int = -100,
    **_,
) -> torch.Tensor:
    """sum_t p(t) L_t - entropy_weight H(p), the mean over the labelled positions.

    A position's exit distribution p is made from the gate's probabilities g_t of exiting after recurrence t: p(t) =
    g_t (1 - g_1) ... (1 - g_{t-1}), and the last recurrence has the rest. L_t is the cross-entropy of its readout.

    Args:
        exits: float32 [recurrences - 1, batch, width], the gate's logits after each recurrence but the last.
        logits: [batch, width, vocabulary], one after each recurrence, the last too.
        labels: int64 [batch, width], not shifted.
        num_items_in_batch: divide the sum by this instead of by the number of labelled positions.
        shift_labels: the labels already shifted, instead of `labels`.
        ignore_index: the label of positions that do not count.

    Returns:
        float32 [].
    """
    if shift_labels is None:
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    shift_labels = shift_labels.to(exits.device)
    stayed = F.pad(F.logsigmoid(-exits).cumsum(0), (0, 0, 0, 0, 1, 0))
    log_p = torch.cat((stayed[:-1] + F.logsigmoid(exits), stayed[-1:]))
    losses = torch.stack(
        [
            F.cross_entropy(each.float().transpose(1, 2), shift_labels, ignore_index=ignore_index, reduction="none")
            for each in logits
        ]
    )
    per_position = (log_p.exp() * (losses + entropy_weight * log_p)).sum(0)
    counted = shift_labels != ignore_index
    items = counted.sum() if num_items_in_batch is None else num_items_in_batch
    return per_position.masked_fill(~counted, 0.0).sum() / items
