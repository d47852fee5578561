"""What a recurrent-depth model can do. Samplers use these verbs and know nothing else about a family."""

from abc import ABCMeta, abstractmethod

import torch

from ..cache.recurrent_depth_cache import NoCache, RecurrentDepthCache


class RecurrentDepthInterface(metaclass=ABCMeta):
    """The verbs of a recurrent-depth language model: logits = decode(recur(... initialize_state(embed(ids)))).

    `positions` is int64 [batch, width]: absolute positions counted from each row's first real token, -1 for padding.
    `cache` is a `RecurrentDepthCache`, or a `NoCache` to attend among the given positions only. A caller that makes
    several passes over the same positions calls `cache.place(positions)` once and passes the same tensor to each verb.
    Where rows are ragged it may leave their padding out (`place(unpadding=...)`): every tensor is then [1, n, ...], the
    positions of all rows, and the cache, through which attention goes, knows which row each is of.
    """

    has_injected_embedding: bool = True
    """Whether the core reads e at every recurrence; diffusion forcing needs it."""

    starts_from_noise: bool = True
    """Whether `initialize_state` looks at e for its shape and dtype alone, so that samplers may call it early."""

    has_exit_gate: bool = False
    """Whether there is an `exit_gate`; the criterion of that name needs it."""

    @abstractmethod
    def embed(self, input_ids: torch.Tensor, positions: torch.Tensor, cache: RecurrentDepthCache | NoCache):
        """The prelude: token ids int64 [batch, width] -> injected embedding e [batch, width, channels]."""

    @abstractmethod
    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """s0 [batch, width, channels], from position-keyed noise; `scale` 0.0 gives zeros.

        `seeds` is int64 [batch], or [batch, width] where positions have seeds of their own.
        """

    @abstractmethod
    def recur(
        self,
        s: torch.Tensor,
        e: torch.Tensor,
        positions: torch.Tensor,
        cache: RecurrentDepthCache | NoCache,
        depth: int | range | torch.Tensor,
    ) -> torch.Tensor:
        """One pass of the core, recurrence `depth` (0-based): s [batch, width, channels] -> s, same shape.

        `depth` may be int64 [batch, width], one recurrence per position, or a range, one per column;
        `cache.slot(depth)` takes any.
        """

    @abstractmethod
    def decode(
        self,
        s: torch.Tensor,
        positions: torch.Tensor,
        cache: RecurrentDepthCache | NoCache,
        readout: int | tuple[int, ...] = 0,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Coda and head: logits [batch, kept, vocabulary].

        `readout` names the coda timeline (0 is the only one of a plain cache), or one for each column.
        `logits_to_keep` keeps the last n columns (0: all), or the columns of an index tensor: the coda's keys and
        values are written for all anyway.
        """

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """Of models with an exit gate: logits [batch, width] of leaving after the recurrence that made s."""
        raise NotImplementedError(f"{type(self).__name__} has no exit gate.")

    @abstractmethod
    def new_cache(self, num_steps: int, kv_sharing: str | int = "last", capacity: int = 0) -> RecurrentDepthCache:
        """An empty cache of this model's shape."""
