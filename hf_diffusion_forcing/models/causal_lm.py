"""What the language models of all families do alike: forward() by the verbs, depth in training, placements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache import NoCache, Placement, RecurrentDepthCache, absolute_positions
from ..randomness import row_seeds
from .interface import RecurrentDepthInterface
from .rotary import inverse_frequencies, rotations


@dataclass
class RecurrentDepthOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the latents that were read out.

    Attributes:
        latents: [batch, width, channels], the last recurrence's states as they are read out.
    """

    latents: torch.FloatTensor | None = None


class RecurrentDepthForCausalLM(RecurrentDepthInterface):
    """A causal language model whose `forward()` is embed, num_steps x recur, decode.

    A family inherits from it, its own `PreTrainedModel` and `RecurrentDepthGenerationMixin`, in this order, and
    implements the verbs. Its config has `mean_recurrence`, `mean_backprop_depth`, `max_position_embeddings`,
    `padded_vocab_size`, `head_dim` and `rope_parameters`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.inverse_frequencies = inverse_frequencies(config)

    def placed(self, positions: torch.Tensor, cache: RecurrentDepthCache | NoCache) -> Placement:
        """The placement of `positions`, with the rotation of its queries and keys; made once per positions tensor."""
        placed = cache.placement
        if placed is None or placed.positions is not positions:
            placed = cache.place(positions)
        if placed.rotary is None:
            placed.rotary = rotations(positions, self.inverse_frequencies)
        return placed

    def latents(self, s: torch.Tensor) -> torch.Tensor:
        """States [batch, width, channels] as `forward()` returns them."""
        return s

    def sample_depth(self) -> int:
        """Recurrences of a training step in which `num_steps` is not given."""
        return self.config.mean_recurrence

    def unroll(self, s, e, positions, cache, num_steps: int, on_recurrence=None) -> torch.Tensor:
        """`num_steps` recurrences. In training only the last `mean_backprop_depth` carry gradients."""
        truncated = num_steps - self.config.mean_backprop_depth if self.training else 0
        for depth in range(num_steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and depth >= truncated):
                before, s = s, self.recur(s, e, positions, cache, depth)
            if on_recurrence is not None:
                on_recurrence(s, before)
        return s

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RecurrentDepthCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_steps: int | None = None,
        state_scale: float = 1.0,
        seeds: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RecurrentDepthOutput | tuple:
        """Logits of every position after `num_steps` recurrences.

        Args:
            input_ids: int64 [batch, width].
            attention_mask: [batch, columns seen so far + width], 1 for real tokens; padding may stand on either side.
            past_key_values: a cache that holds the earlier columns.
            labels: int64 [batch, width]; -100 is ignored; gives `loss` (shifted cross-entropy).
            use_cache: make a cache when none is given; by default only where no gradients are wanted.
            num_steps: recurrences; `mean_recurrence` by default, `sample_depth()` while training.
            state_scale: factor on a state start made of noise; 0.0 starts from zeros.
            seeds: int64 [batch], seeds of the state start; drawn from torch's global generator by default.
            logits_to_keep: last columns to compute logits for; 0 is all.
            on_recurrence: called after every recurrence with the states [batch, width, channels] and those before it.

        Raises:
            ValueError: `num_steps` < 1, a sequence longer than the context, a mask of another shape, an argument it
                does not take.
        """
        config = self.config
        for name, value in kwargs.items():
            # Trainer passes the one for the loss; generate() hands on the tokenizer it got for stop strings.
            if (
                name not in ("num_items_in_batch", "tokenizer", "assistant_tokenizer")
                and value is not None
                and value is not False
            ):
                reason = "positions are counted from attention_mask" if name == "position_ids" else "leave it out"
                raise ValueError(f"forward() does not take {name}: {reason}.")
        if num_steps is None:
            num_steps = self.sample_depth() if self.training else config.mean_recurrence
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        batch, width = input_ids.shape
        if use_cache is None:
            # Entries are written in place, which autograd does not allow: no cache where gradients are wanted.
            use_cache = config.use_cache and not self.training and not torch.is_grad_enabled()
        if past_key_values is None and use_cache:
            past_key_values = self.new_cache(num_steps, "none")
        cache = past_key_values if past_key_values is not None else NoCache()
        seen = cache.columns if past_key_values is not None else 0
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
        positions, start = absolute_positions(attention_mask, seen, (batch, width), input_ids.device)
        # The same tensor in every verb below: its placement is made once.
        cache.place(positions, start=start, extent=seen + width)
        if seeds is None:
            seeds = row_seeds(None, batch, input_ids.device)

        e = self.embed(input_ids, positions, cache)
        s = self.initialize_state(e, positions, seeds, state_scale)
        s = self.unroll(s, e, positions, cache, num_steps, on_recurrence)
        logits = self.decode(s, positions, cache, logits_to_keep=logits_to_keep)
        if past_key_values is not None:
            past_key_values.settle(num_steps)
            past_key_values.columns += width

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=config.padded_vocab_size, **kwargs)
        output = RecurrentDepthOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, latents=self.latents(s)
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()
