"""The verbs of a recurrent-depth model. Samplers use nothing else of a model family."""

from abc import ABCMeta, abstractmethod

import torch

from ..cache import Placement, RecurrentDepthCache, Slots
from .decoding_heads import DecodingHeads


class RecurrentDepthInterface(metaclass=ABCMeta):
    """The verbs of a recurrent-depth language model: logits = decode(recur(... initialize_state(embed(ids)))).

    `at` is the `Placement` of the pass, made by `cache.place()` or `cache.place_rows()` and passed from verb to verb.
    Tensors are [batch, width, ...], or [1, n, ...] for positions of several rows end to end. Attention must use
    `at.attend(layer, query, key, value, slot)`, with layers counted over prelude, core and coda; `slot` is
    `at.slot(depth)` in the core, `readout` in the coda and 0 in the prelude.
    """

    has_injected_embedding: bool = True
    """Whether the core reads e at every recurrence, as diffusion forcing requires."""

    starts_from_noise: bool = True
    """Whether `initialize_state` uses only the shape and dtype of e, so that samplers may call it early."""

    has_bidirectional_prompt: bool = False
    """Whether tokens of a prompt may see each other in both directions (`token_type_ids` of 1). Such a prompt is read
    in one piece."""

    has_exit_gate: bool = False
    """Whether the model has an `exit_gate`, as the criterion of that name requires."""

    reads_token_ids: bool = False
    """Whether a token reaches the states by more than e: the core or the coda read the ids of a pass, `at.ids`, too.
    A changed draft then reaches every recurrence both ways. Embeddings in place of ids are refused."""

    compiles_core: bool = True
    """Whether torch.compile compiles `recur` as one graph, as `compile=True` requires."""

    has_readable_shallow_states: bool = True
    """Whether training also read out states before the last recurrence, so that shallow readouts mean something."""

    decoding_heads: DecodingHeads | None = None
    """Heads that were fitted to the model (`hf-diffusion-forcing fit`). Samplers use them where there are some; set it
    to None to decode without them."""

    @abstractmethod
    def embed(
        self, input_ids: torch.Tensor | None, at: Placement, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The prelude: token ids -> injected embedding e [batch, width, channels].

        Args:
            input_ids: int64 [batch, width]; not read, and possibly None, with `inputs_embeds`.
            inputs_embeds: [batch, width, channels], in place of `get_input_embeddings()(input_ids)`; what a family does
                to that afterwards (such as scaling it) is done to them, too.
        """

    @abstractmethod
    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """s0 [batch, width, channels], from position-keyed noise; `scale` 0.0 gives zeros.

        The only verb without attention: it needs positions but no placement.

        Args:
            positions: int64 [batch, width].
            seeds: int64 [batch], or [batch, width] with a seed for each position.
        """

    @abstractmethod
    def recur(self, s: torch.Tensor, e: torch.Tensor, at: Placement, depth: int) -> torch.Tensor:
        """One pass of the core: s [batch, width, channels] -> s, same shape.

        Args:
            depth: which recurrence of this pass, 0-based; `at.depth` counts those before it.
        """

    @abstractmethod
    def decode(
        self,
        s: torch.Tensor,
        at: Placement,
        readout: int | Slots = 0,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Coda and head: logits [batch, kept, vocabulary].

        Args:
            readout: the coda's slot (0 unless a sampler has started another readout), or one for each position.
            logits_to_keep: the last n columns (0: all), or the columns of an index tensor. The coda's keys and values
                are written for all columns.
        """

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """For models with an exit gate: logits [batch, width] of exiting after the recurrence that produced s."""
        raise NotImplementedError(f"{type(self).__name__} has no exit gate.")

    @abstractmethod
    def new_cache(self, num_steps: int, kv_sharing: str | int = "last", capacity: int = 0) -> RecurrentDepthCache:
        """An empty cache for this model."""
