"""`forward()` from the verbs: embed, num_steps x recur, and a readout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cache import NoCache, Placement, RecordedAttention, RecurrentDepthCache, absolute_positions
from ..randomness import fold_in, row_seeds
from ..settings.trained_depth import warn_beyond_training
from .attention_choice import check_attentions
from .forward_call import ForwardCall, check_embeds_allowed
from .positions import packed_sequences
from .token_types import prompt_block


@dataclass
class Unrolled:
    """What a forward pass computed.

    Attributes:
        readout: logits, or the input of the head.
        states: [batch, width, channels], after the last recurrence.
        cache: the cache, if there is one.
        hidden_states, attentions: as in `RecurrentDepthForCausalLM.forward`, if asked for.
    """

    readout: torch.Tensor
    states: torch.Tensor
    cache: RecurrentDepthCache | None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class UnrolledModel:
    """Shared by base and language models: the recurrences of a `forward()`, and depth in training.

    Needs the verbs `embed`, `initialize_state`, `recur` and `new_cache` (see `RecurrentDepthInterface`), and a config
    with `mean_recurrence`, `mean_backprop_depth`, `training_depth`, `state_seed`, `max_position_embeddings` and
    `use_cache`.
    """

    starts_from_noise = True
    """Whether an initial state needs a seed."""

    has_bidirectional_prompt = False
    """Whether tokens of a prompt may see each other in both directions, where `token_type_ids` is 1."""

    reads_token_ids = False
    """Whether the core or the coda read the ids of a pass, `at.ids`, beside e."""

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
        """`num_steps` recurrences. In training only the last `mean_backprop_depth` carry gradients (all if None)."""
        carrying = self.config.mean_backprop_depth
        truncated = max(num_steps - carrying, 0) if self.training and carrying is not None else 0
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

    def forward_pass(self, call: ForwardCall, logits_to_keep: int | torch.Tensor = 0) -> Unrolled:
        """Embed, recur and read out.

        Raises:
            ValueError, TypeError: see `RecurrentDepthForCausalLM.forward`.
        """
        call.check()
        check_embeds_allowed(self, call.inputs_embeds)
        keeps_states, keeps_attentions = self._outputs(call)
        num_steps = call.num_steps
        if num_steps is None:
            num_steps = self.config.mean_recurrence
            if self.training:
                num_steps = self.config.training_depth or self.sample_depth()
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        if not (self.training or torch.compiler.is_compiling()):
            warn_beyond_training(self.config, num_steps)
        seen = 0 if call.cache is None else call.cache.columns
        at, kept, seeds = self._place(call, seen, num_steps)
        states: list[torch.Tensor] = []

        def watch(s: torch.Tensor, before: torch.Tensor) -> None:
            if keeps_states:
                states.append(s)
            if call.on_recurrence is not None:
                call.on_recurrence(s, before)

        if keeps_attentions:
            at.kernel = record = RecordedAttention()
        e = self.embed(call.input_ids, at, call.inputs_embeds)
        s = self.initialize_state(e, at.positions, seeds, call.state_scale)
        watched = keeps_states or call.on_recurrence is not None
        s = self.unroll(s, e, at, num_steps, watch if watched else None)
        readout, hidden = self.read(s, at, logits_to_keep, keeps_states)
        if kept is not None:
            kept.settle(at, num_steps)
            kept.columns += call.shape[1]
        hidden_states = (e, *states, *hidden) if keeps_states else None
        attentions = None
        if keeps_attentions:
            attentions = by_column(record.probabilities, None if kept is None else call.attention_mask)
        return Unrolled(readout, s, kept, hidden_states, attentions)

    def read(
        self, s: torch.Tensor, at: Placement, logits_to_keep: int | torch.Tensor, keeps_hidden: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """What `forward()` reads out of the last states, and with `keeps_hidden` what the head reads, if that is known.

        Args:
            s: [batch, width, channels].
            logits_to_keep: see `RecurrentDepthInterface.decode`.

        Returns:
            The readout, and none or one tensor [batch, width, channels].
        """
        raise NotImplementedError

    def _outputs(self, call: ForwardCall) -> tuple[bool, bool]:
        """Whether to keep hidden states and attentions: an argument overrides the config."""
        config = self.config
        states, attentions = call.output_hidden_states, call.output_attentions
        states = config.output_hidden_states if states is None else states
        attentions = config.output_attentions if attentions is None else attentions
        if attentions:
            check_attentions(config)
        return bool(states), bool(attentions)

    def _place(
        self, call: ForwardCall, seen: int, num_steps: int
    ) -> tuple[Placement, RecurrentDepthCache | None, torch.Tensor]:
        """The placement of the pass, the cache it writes if there is one, and seeds of the initial states."""
        batch, width = shape = call.shape
        self._check_columns(batch, width, seen, call.attention_mask)
        positions, start = absolute_positions(call.attention_mask, seen, shape, call.device)
        block = prompt_block(call.token_type_ids, self.has_bidirectional_prompt, shape, seen)
        packed = None if call.position_ids is None else packed_sequences(call.position_ids, positions, seen)
        kept = self._cache(call, num_steps, packed is not None)
        seeds = self.start_seeds(batch, call.device) if call.seeds is None else call.seeds
        if packed is None:
            if kept is None:
                return NoCache().place(positions, start=start, block=block), None, seeds
            at = kept.place(positions, start=start, extent=seen + width)
            if block is not None:
                at.open_block(block)
            return at, kept, seeds
        positions, sequences = packed
        if call.seeds is None and self.config.state_seed is None:
            # Sequences of a row have the same positions; they start from noise of their own all the same.
            seeds = fold_in(seeds, sequences)
        return NoCache().place(positions, sequences=sequences, block=block), None, seeds

    def _cache(self, call: ForwardCall, num_steps: int, is_packed: bool) -> RecurrentDepthCache | None:
        """The cache of the caller, or a new one.

        A model in training mode makes one only for `use_cache=True`: its depth changes from step to step, and nobody
        goes on from there.
        """
        name, wants = "use_cache=True", call.use_cache
        if call.cache is not None:
            name, wants = "cache", True
        if wants and is_packed:
            raise ValueError(
                f"{name} is not possible with packed rows (position_ids restart): a cache holds one sequence per row. "
                "Leave it out."
            )
        if wants and self.training and self.is_activation_checkpointing:
            raise ValueError(
                f"{name} is not possible with gradient checkpointing in training mode, which runs the layers again in "
                "the backward pass: leave it out, or call model.eval()."
            )
        if call.cache is not None:
            return call.cache
        if wants is None:
            wants = self.config.use_cache and not self.training and not is_packed
        return self.new_cache(num_steps, "none") if wants else None

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
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {seen} cached columns and inputs of "
                f"shape {(batch, width)} it must be {(batch, seen + width)}."
            )


def by_column(probabilities: list[torch.Tensor], attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Attention probabilities over absolute positions, as a cache has them, by column; padding has 0.

    Args:
        probabilities: [batch, heads, width, positions] each.
        attention_mask: [batch, columns], or None where positions are columns.
    """
    if attention_mask is None:
        return tuple(probabilities)
    positions, _ = absolute_positions(attention_mask, 0, tuple(attention_mask.shape), attention_mask.device)
    columns = positions[:, None, None, :]
    moved = []
    for each in probabilities:
        index = columns.to(each.device).expand(*each.shape[:3], -1)
        moved.append(each.gather(-1, index.clamp_min(0)).masked_fill(index < 0, 0.0))
    return tuple(moved)
