"""One tick of a sampler, as hooks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch


class RefinedModel(Protocol):
    """What a hook may ask of the model whose states it sees.

    Attributes:
        config: the model's.
        has_exit_gate: whether there is an `exit_gate`.
    """

    config: Any
    has_exit_gate: bool

    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """Fresh states [batch, width, channels] of the shape and dtype of e."""

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """Logits [batch, width] of leaving after the recurrence that made s."""


@dataclass(kw_only=True, eq=False)
class Refinement:
    """What latent processors and exit criteria see of one tick (of one recurrence, where a sampler decides after each).

    The sampler makes a new one every tick and fills it as the tick goes on. Columns are positions of the wave; what a
    hook keeps for the next tick with `remember` comes back from `recall` in the columns the positions then have.

    Attributes:
        positions: int64 [batch, width], absolute; -1 past a row's width, where every other value is meaningless.
        input_ids: int64 [batch, width], the tokens that are refined; all but a row's first may be drafts.
        fresh: bool [batch, width], positions that did not exist a tick ago. What is recalled there is meaningless.
        steps: int64 [batch, width], recurrences each position has had since its input token last changed, without
            this tick's.
        recurrences: core passes of this tick.
        budget: the most recurrences a position at the front gets (`max_steps`).
        seeds: int64 [batch].
        model: for hooks that want its verbs.
        memory: what hooks remembered a tick ago, moved to this tick's columns.
        before: [batch, width, channels], states at the start of the tick; None until there are any.
        states: [batch, width, channels], current states; None until there are any.
        logits: [batch, width, vocabulary], raw; None until the states are decoded.
        predictions: int64 [batch, width], the tokens chosen from the processed logits; None until then.
        exit_values: float [batch, width], what the exit criterion has compared with its threshold, for those who watch
            (`return_trace`); None for a criterion that sets none.
        remembered: what hooks keep for the next tick.
    """

    positions: torch.Tensor
    input_ids: torch.Tensor
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
        """What was remembered under `key` a tick ago, [batch, width, ...]; None when nothing was."""
        return self.memory.get(key)

    def remember(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor [batch, width, ...] for the next tick, under a key that starts with the hook's own name.

        Raises:
            ValueError: the tensor does not have one entry for each position.
        """
        if tensor.shape[:2] != self.positions.shape:
            raise ValueError(
                f"{key!r} has shape {tuple(tensor.shape)}: a remembered tensor starts with the batch and the width, "
                f"{tuple(self.positions.shape)}."
            )
        self.remembered[key] = tensor
