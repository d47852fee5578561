"""A tick of a sampler as hooks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class RefinedModel(Protocol):
    """The part of a model that hooks may use.

    Attributes:
        config: the model's config.
        has_exit_gate: whether the model has an `exit_gate`.
        decoding_heads: heads that were fitted to the model, or None.
    """

    config: Any
    has_exit_gate: bool
    decoding_heads: Any

    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """Initial states [batch, width, channels] with the shape and dtype of e."""

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """Logits [batch, width] of exiting after the recurrence that produced s."""


@dataclass(kw_only=True, eq=False)
class Refinement:
    """The data of one tick (or one recurrence of the prompt) for latent processors and exit criteria.

    The sampler makes a new one for every tick and fills it in step by step. The positions of all rows are end to end,
    so batch is 1 and width is the number of positions. A hook passes data to the next tick with `remember`; `recall`
    returns it, rearranged to that tick's positions.

    Attributes:
        positions: int64 [batch, width], absolute.
        input_ids: int64 [batch, width], the tokens being refined; all but a row's first may be drafts.
        rows: int64 [batch, width], each position's row.
        fresh: bool [batch, width], positions that were not in the last tick. Recalled values are meaningless there.
        steps: int64 [batch, width], recurrences of each position since its input token last changed, before this tick.
        recurrences: core passes of this tick.
        budget: the most recurrences of a position at the front.
        seeds: int64 [batch, width], the seed of each position's row.
        model: for hooks that use its verbs.
        memory: the hooks' data from the last tick, rearranged to this tick's positions.
        before: [batch, width, channels], states at the start of the tick; None until they exist.
        states: [batch, width, channels], current states; None until they exist.
        logits: [batch, width, vocabulary], raw; None until the states are decoded.
        predictions: int64 [batch, width], the tokens chosen from the processed logits; None until then.
        exit_values: float [batch, width], the values the exit criterion compared with its threshold, for the trace;
            None for a criterion that sets none.
        remembered: the hooks' data for the next tick.
    """

    positions: torch.Tensor
    input_ids: torch.Tensor
    rows: torch.Tensor
    fresh: torch.Tensor
    steps: torch.Tensor
    recurrences: int
    budget: int
    seeds: torch.Tensor
    model: RefinedModel
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    before: torch.Tensor | None = None
    states: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    predictions: torch.Tensor | None = None
    exit_values: torch.Tensor | None = None
    remembered: dict[str, torch.Tensor] = field(default_factory=dict, init=False)

    def recall(self, key: str) -> torch.Tensor | None:
        """The tensor remembered under `key` in the last tick, [batch, width, ...]; None if there is none."""
        return self.memory.get(key)

    def remember(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor [batch, width, ...] for the next tick, under a key that starts with the hook's own name.

        Raises:
            ValueError: the tensor does not have one entry for each position.
        """
        if tensor.shape[:2] != self.positions.shape:
            raise ValueError(
                f"{key!r} has shape {tuple(tensor.shape)}: a remembered tensor must start with batch and width, "
                f"{tuple(self.positions.shape)}."
            )
        self.remembered[key] = tensor
