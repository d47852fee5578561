"""`forward()` from the verbs: embed, num_steps x recur, and a readout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..cache import NoCache, Placement, RecurrentDepthCache, absolute_positions
from ..randomness import row_seeds

PASSED_BY_OTHERS = ("num_items_in_batch", "tokenizer", "assistant_tokenizer")
"""Arguments that `forward()` ignores: Trainer passes the first for the loss, and generate() passes on the tokenizer
for stop strings."""


class UnrolledModel:
    """Shared by base and language models: the recurrences of a `forward()`, and depth in training.

    Needs the verbs `embed`, `initialize_state`, `recur` and `new_cache` (see `RecurrentDepthInterface`), and a config
    with `mean_recurrence`, `mean_backprop_depth`, `training_depth`, `state_seed`, `max_position_embeddings` and
    `use_cache`.
    """

    starts_from_noise = True
    """Whether an initial state needs a seed."""

    def latents(self, s: torch.Tensor) -> torch.Tensor:
        """States [batch, width, channels] as `forward()` returns them."""
        return s

    def sample_depth(self) -> int:
        """Recurrences of a training step when `num_steps` is not given."""
        return self.config.mean_recurrence

    def start_seeds(self, batch: int, device: torch.device) -> torch.Tensor:
        """Seeds of the initial states, int64 [batch], when the call has none."""
        seed = self.config.state_seed
        if seed is None and self.starts_from_noise:
            return row_seeds(None, batch, device)
        # One for all rows: a row's state does not depend on its batch.
        return torch.full((batch,), seed or 0, dtype=torch.int64, device=device)

    def unroll(
        self,
        s: torch.Tensor,
        e: torch.Tensor,
        at: Placement,
        num_steps: int,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """`num_steps` recurrences. In training only the last `mean_backprop_depth` carry gradients."""
        truncated = max(num_steps - self.config.mean_backprop_depth, 0) if self.training else 0
        # Two loops: torch.compile cannot trace one whose grad mode changes on the way.
        for depth in range(truncated):
            with torch.no_grad():
                before, s = s, self.recur(s, e, at, depth)
            if on_recurrence is not None:
                on_recurrence(s, before)
        for depth in range(truncated, num_steps):
            before, s = s, self.recur(s, e, at, depth)
            if on_recurrence is not None:
                on_recurrence(s, before)
        return s

    def read_after_unroll(
        self,
        read: Callable[[torch.Tensor, Placement], torch.Tensor],
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        cache: RecurrentDepthCache | None,
        use_cache: bool | None,
        num_steps: int | None,
        state_scale: float,
        seeds: torch.LongTensor | None,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None,
        others: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor, RecurrentDepthCache | None]:
        """Embed, recur and read out; arguments as in `forward()`.

        Args:
            read: reads out the states of a pass.
            others: other arguments of the caller; none may change the result.

        Returns:
            What `read` gives, the states [batch, width, channels], and the cache if there is one.

        Raises:
            ValueError: `num_steps` < 1, a sequence longer than the context, a mask of another shape, an argument
                `forward()` does not take.
        """
        _refuse(others)
        if num_steps is None:
            num_steps = self.config.mean_recurrence
            if self.training:
                num_steps = self.config.training_depth or self.sample_depth()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        batch, width = input_ids.shape
        if use_cache is None:
            # No cache with gradients: autograd does not allow in-place writes of entries.
            use_cache = self.config.use_cache and not self.training and not torch.is_grad_enabled()
        kept = self.new_cache(num_steps, "none") if cache is None and use_cache else cache
        cache = NoCache() if kept is None else kept
        seen = cache.columns
        self._check_columns(batch, width, seen, attention_mask)
        positions, start = absolute_positions(attention_mask, seen, (batch, width), input_ids.device)
        if seeds is None:
            seeds = self.start_seeds(batch, input_ids.device)

        at = cache.place(positions, start=start, extent=seen + width)
        e = self.embed(input_ids, at)
        s = self.initialize_state(e, positions, seeds, state_scale)
        s = self.unroll(s, e, at, num_steps, on_recurrence)
        y = read(s, at)
        if kept is not None:
            kept.settle(at, num_steps)
            kept.columns += width
        return y, s, kept

    def _check_columns(self, batch: int, width: int, seen: int, attention_mask: torch.Tensor | None) -> None:
        config = self.config
        if seen + width > config.max_position_embeddings:
            limit = config.attribute_map.get("max_position_embeddings", "max_position_embeddings")
            raise ValueError(
                f"The sequence has {seen + width} tokens, more than {limit}={config.max_position_embeddings}: shorten "
                "the prompt."
            )
        if attention_mask is not None and attention_mask.shape != (batch, seen + width):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {seen} cached columns and input_ids of "
                f"shape {(batch, width)} it must be {(batch, seen + width)}."
            )


def _refuse(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name not in PASSED_BY_OTHERS and value is not None and value is not False:
            reason = "positions are counted from attention_mask" if name == "position_ids" else "leave it out"
            raise ValueError(f"forward() does not take {name}: {reason}.")
