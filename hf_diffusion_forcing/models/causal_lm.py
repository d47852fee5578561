"""The language model shared by all families: forward() from the verbs, and a head on a base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache import RecurrentDepthCache
from ..compat import CACHE, CacheOutput, takes_cache
from .interface import RecurrentDepthInterface
from .unrolled import UnrolledModel


@dataclass
class RecurrentDepthOutput(CacheOutput, CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` with latents.

    Attributes:
        latents: [batch, width, channels], the last recurrence's states as the coda reads them.
    """

    latents: torch.FloatTensor | None = None


class RecurrentDepthForCausalLM(UnrolledModel, RecurrentDepthInterface):
    """A causal language model whose `forward()` is embed, num_steps x recur, decode.

    A family inherits from this and its own `PreTrainedModel`, in this order, and implements the verbs; registration
    adds `generate()`. The config needs `mean_recurrence`, `mean_backprop_depth`, `training_depth`,
    `state_seed`, `max_position_embeddings`, `padded_vocab_size` and `use_cache`.
    """

    reads_every_state = False
    """Whether `language_loss` reads the states after every recurrence."""

    def language_loss(
        self, logits: torch.Tensor, states: list[torch.Tensor], labels: torch.LongTensor, **kwargs
    ) -> torch.Tensor:
        """The loss that `forward()` returns.

        Args:
            logits: [batch, width, vocabulary].
            states: with `reads_every_state` those after each recurrence, [batch, width, channels]; otherwise none.
            labels: int64 [batch, width], not shifted.
            kwargs: those of transformers' loss functions.
        """
        return self.loss_function(logits=logits, labels=labels, vocab_size=self.config.padded_vocab_size, **kwargs)

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        cache: RecurrentDepthCache | None = None,
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
            attention_mask: [batch, columns seen so far + width], 1 for real tokens; padding may be on either side.
            cache: a cache with the earlier columns; before transformers 5.24 its name was `past_key_values`, which
                still works.
            labels: int64 [batch, width], for the `loss` (shifted cross-entropy); -100 is ignored.
            use_cache: make a cache if none is given; by default only when gradients are off.
            num_steps: recurrences; by default `mean_recurrence`, or in training the config's `training_depth`, or
                `sample_depth()` without one.
            state_scale: factor on a random initial state; 0.0 starts from zeros.
            seeds: int64 [batch], seeds of the initial states; by default the config's `state_seed`, or one drawn from
                torch's global generator.
            logits_to_keep: last columns to compute logits for; 0 is all.
            on_recurrence: called after every recurrence with the states [batch, width, channels] after and before it.

        Raises:
            ValueError: `num_steps` < 1, the sequence exceeds the context, the mask has another shape, or an argument
                is not supported.
        """
        states: list[torch.Tensor] = []
        if labels is not None and self.reads_every_state:
            on_recurrence = _collecting(states, on_recurrence)
        logits, s, cache = self.read_after_unroll(
            partial(self.decode, logits_to_keep=logits_to_keep),
            input_ids,
            attention_mask,
            cache,
            use_cache,
            num_steps,
            state_scale,
            seeds,
            on_recurrence,
            kwargs,
        )
        loss = None
        if labels is not None:
            loss = self.language_loss(logits, states, labels, **kwargs)
        output = RecurrentDepthOutput(loss=loss, logits=logits, latents=self.latents(s), **{CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _collecting(states: list[torch.Tensor], then: Callable[[torch.Tensor, torch.Tensor], None] | None):
    """An `on_recurrence` that keeps the states and then calls another."""

    def on_recurrence(s: torch.Tensor, before: torch.Tensor) -> None:
        states.append(s)
        if then is not None:
            then(s, before)

    return on_recurrence


class HeadedForCausalLM(RecurrentDepthForCausalLM):
    """A language model made of a `RecurrentDepthModel` (`base_model`) and a head (`lm_head`)."""

    # With a tied head the embedding must be split over the vocabulary, too, as the configs' plans say.
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def embed(self, input_ids, at):
        return self.base_model.embed(input_ids, at)

    def initialize_state(self, e, positions, seeds, scale=1.0):
        return self.base_model.initialize_state(e, positions, seeds, scale)

    def recur(self, s, e, at, depth):
        return self.base_model.recur(s, e, at, depth)

    def decode(self, s, at, readout=0, logits_to_keep=0):
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.lm_head(self.base_model.read_out(s, at, readout, kept))

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return self.base_model.new_cache(num_steps, kv_sharing, capacity)

    def latents(self, s):
        return self.base_model.latents(s)

    def sample_depth(self):
        return self.base_model.sample_depth()
