"""The language model shared by all families: forward() from the verbs, and a head on a base model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..cache import RecurrentDepthCache
from ..compat import CACHE, CacheOutput, takes_cache
from .forward_call import ForwardCall
from .heads_file import KeepsHeads
from .interface import RecurrentDepthInterface
from .unrolled import UnrolledModel
from .widening import Widening


@dataclass
class RecurrentDepthOutput(CacheOutput, CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` with latents.

    Attributes:
        hidden_states, attentions: if asked for; see `RecurrentDepthForCausalLM.forward`.
        latents: [batch, width, channels], the last recurrence's states as the coda reads them.
    """

    latents: torch.FloatTensor | None = None


class RecurrentDepthForCausalLM(KeepsHeads, UnrolledModel, RecurrentDepthInterface):
    """A causal language model whose `forward()` is embed, num_steps x recur, decode.

    A family inherits from this and its own `PreTrainedModel`, in this order, and implements the verbs; registration
    adds `generate()`. The config needs `mean_recurrence`, `mean_backprop_depth`, `training_depth`,
    `state_seed`, `max_position_embeddings`, `padded_vocab_size` and `use_cache`.
    """

    reads_every_state = False
    """Whether `language_loss` reads the states after every recurrence."""

    def language_loss(
        self, logits: torch.Tensor, states: list[torch.Tensor], labels: torch.LongTensor | None, **kwargs
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
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: RecurrentDepthCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_steps: int | None = None,
        state_scale: float = 1.0,
        seeds: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> RecurrentDepthOutput | tuple:
        """Logits of every position after `num_steps` recurrences.

        Args:
            input_ids: int64 [batch, width].
            attention_mask: [batch, columns seen so far + width], 1 for real tokens; padding may be on either side.
            position_ids: int64 [batch or 1, width], counted from each row's first real token, as they are without it.
                Where they restart at 0, the next sequence of a packed row begins: positions see only their own
                sequence, and no cache is made.
            cache: a cache with the earlier columns; before transformers 5.24 its name was `past_key_values`, which
                still works. Gradients do not flow into the passes that wrote it.
            inputs_embeds: [batch, width, channels], in place of `get_input_embeddings()(input_ids)`.
            labels: int64 [batch, width], for the `loss` (shifted cross-entropy); -100 is ignored.
            use_cache: make a cache if none is given. By default as `config.use_cache` says in evaluation mode, also
                with gradients, and never in training mode.
            num_steps: recurrences; by default `mean_recurrence`, or in training the config's `training_depth`, or
                `sample_depth()` without one.
            state_scale: factor on a random initial state; 0.0 starts from zeros.
            seeds: int64 [batch] or [batch, width], seeds of the initial states; by default the config's `state_seed`,
                or one drawn from torch's global generator. A packed row's sequences start from the same noise if they
                have the same seed.
            logits_to_keep: last columns to compute logits for; 0 is all.
            on_recurrence: called after every recurrence with the states [batch, width, channels] after and before it.
            output_hidden_states: return `hidden_states`, num_steps + 2 tensors [batch, width, channels]: the injected
                embedding e, the states after each recurrence, and what the head reads. (An adapter's decode() does not
                show the last: then there are num_steps + 1.) By default as `config.output_hidden_states` says.
            output_attentions: return `attentions`, a tensor [batch, heads, width, columns] for each attention layer, in
                the order in which they run: the prelude's, the core's of every recurrence, the coda's. Needs
                `attn_implementation="eager"`. By default as `config.output_attentions` says.
            token_type_ids: int64 [batch, width]. For models with `has_bidirectional_prompt`: 1 for the tokens of a
                prompt that see each other in both directions, 0 for those that see only earlier ones. Such a prompt is
                passed in one piece, with an empty cache or none. For other models all are 0.

        The keyword `shift_labels`, int64 [batch, width], gives labels that are shifted already and overrides `labels`.
        Keywords that say nothing new are ignored: `cache_position`, and a packed batch's
        `cu_seq_lens_q`, `max_length_q`, `seq_idx` and the like.

        Raises:
            ValueError: `num_steps` < 1, the sequence exceeds the context, the mask has another shape, `position_ids`
                neither go on nor restart, or an argument is not supported.
            TypeError: the cache is not a `RecurrentDepthCache`.
        """
        # (`shift_labels` is not in the signature: Trainer would take it for one of the batch's labels.)
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        states: list[torch.Tensor] = []
        if has_labels and self.reads_every_state:
            on_recurrence = _collecting(states, on_recurrence)
        done = self.forward_pass(
            ForwardCall(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=token_type_ids,
                cache=cache,
                use_cache=use_cache,
                num_steps=num_steps,
                state_scale=state_scale,
                seeds=seeds,
                on_recurrence=on_recurrence,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                others={name: value for name, value in kwargs.items() if name != "shift_labels"},
            ),
            logits_to_keep,
        )
        config, loss = self.config, None
        if has_labels:
            loss = self.language_loss(done.readout, states, labels, **kwargs)
        output = RecurrentDepthOutput(
            loss=loss,
            logits=done.readout,
            hidden_states=done.hidden_states,
            attentions=done.attentions,
            latents=self.latents(done.states),
            **{CACHE: done.cache},
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def read(self, s, at, logits_to_keep, keeps_hidden):
        return self.decode(s, at, logits_to_keep=logits_to_keep), ()


def _collecting(states: list[torch.Tensor], then: Callable[[torch.Tensor, torch.Tensor], None] | None):
    """An `on_recurrence` that keeps the states and then calls another."""

    def on_recurrence(s: torch.Tensor, before: torch.Tensor) -> None:
        states.append(s)
        if then is not None:
            then(s, before)

    return on_recurrence


class HeadedForCausalLM(RecurrentDepthForCausalLM):
    """A language model made of a `RecurrentDepthModel` (`base_model`) and a head (`lm_head`)."""

    widening: Widening | None = None
    """How the model can be made wider; None if it cannot."""

    # With a tied head the embedding must be split over the vocabulary, too, as the configs' plans say.
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def embed(self, input_ids, at, inputs_embeds=None):
        return self.base_model.embed(input_ids, at, inputs_embeds)

    def initialize_state(self, e, positions, seeds, scale=1.0):
        return self.base_model.initialize_state(e, positions, seeds, scale)

    def recur(self, s, e, at, depth):
        return self.base_model.recur(s, e, at, depth)

    def decode(self, s, at, readout=0, logits_to_keep=0):
        return self.lm_head(self.base_model.read_out(s, at, readout, columns_to_keep(logits_to_keep)))

    def read(self, s, at, logits_to_keep, keeps_hidden):
        if not keeps_hidden:
            return super().read(s, at, logits_to_keep, keeps_hidden)
        hidden = self.base_model.read_out(s, at)
        return self.lm_head(hidden[:, columns_to_keep(logits_to_keep)]), (hidden,)

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return self.base_model.new_cache(num_steps, kv_sharing, capacity)

    def latents(self, s):
        return self.base_model.latents(s)

    def sample_depth(self):
        return self.base_model.sample_depth()


def columns_to_keep(logits_to_keep: int | torch.Tensor) -> slice | torch.Tensor:
    """The columns of `logits_to_keep` as an index."""
    return slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
