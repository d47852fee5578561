"""The placement of one pass: row, absolute position and slot of each position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from .attention import attention
from .grid import Grid
from .runs import Run, find_runs


@dataclass(frozen=True)
class Slots:
    """A slot for each position of a pass, on both the host and the device.

    Attributes:
        host: n numbers.
        device: the same numbers, int64 [n].
        apart: a common divisor of the numbers.
    """

    host: tuple[int, ...]
    device: torch.Tensor
    apart: int = 1

    def __add__(self, depth: int) -> Slots:
        return Slots(tuple(slot + depth for slot in self.host), self.device + depth) if depth else self


class PlacingCache(Protocol):
    """The methods a placement calls on its cache."""

    def slot(self, depth: Any) -> Any: ...

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, at: Placement, slot: Any
    ) -> torch.Tensor: ...


@dataclass(eq=False)
class Placement:
    """The rows, absolute positions and slots of one model pass. The cache makes it; the verbs pass it to every layer.

    A pass works either on a grid [batch, width] or on the positions of several rows end to end, [1, n].

    Attributes:
        cache: the cache that made the placement and computes its attention.
        positions: int64 [batch, width] or [1, n], absolute positions counted from each row's first real token; -1 is
            padding, whose output is meaningless.
        extent: an upper bound (exclusive) on the positions.
        seats: the rows' seats in the cache, in order.
        rows: int64 [batch, 1] or [1, n], each position's row, as an index into `seats`.
        depth: recurrences the positions have had before this pass: a number, int64 [1, n], or `Slots`.
        start: the first position if every row's positions are start, start + 1, ..., otherwise None.
        mask: bool [rows, 1, width, extent], True where a query sees a key. None if every key is seen, or with
            `is_causal`: then the positions are the last ones before `extent`, and each sees those up to its own.
        grid: the `Grid` of a pass over rows end to end; None for a grid pass.
        ids: int64, shaped as `positions`: the tokens there, for models that read them after the prelude too
            (`reads_token_ids`). `embed()` fills them in; a placement that it does not see gets them from its maker.
        starts: first position of each row, of a pass that reads prompts; a row's other positions follow it.
        is_exact: whether `kernel` is that of exact arithmetic (`exact_kernel`).
        kernel: computes attention, with the arguments of `attention`; the model family chooses it.
        rotary: the rotations of queries and keys; the model family fills them in.
    """

    cache: PlacingCache
    positions: torch.Tensor
    extent: int
    seats: range
    rows: torch.Tensor
    depth: int | torch.Tensor | Slots = 0
    start: int | None = None
    mask: torch.Tensor | None = None
    is_causal: bool = False
    grid: Grid | None = None
    ids: torch.Tensor | None = None
    starts: list[int] | None = None
    is_exact: bool = False
    kernel: Callable[..., torch.Tensor] = attention
    rotary: Any = None
    _bias: torch.Tensor | None = None
    _position_bias: torch.Tensor | None = None
    _runs: dict[tuple[int, ...], list[Run]] = field(default_factory=dict)
    _copies: dict[torch.device, Placement] = field(default_factory=dict)

    def slot(self, depth: int) -> Any:
        """The slot that recurrence `depth` of this pass (0-based) reads and writes in the core layers."""
        return self.cache.slot(self.depth + depth)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot: Any = 0
    ) -> torch.Tensor:
        """Store keys and values of the positions; each attends to its row's positions up to its own.

        Args:
            layer: 0-based over prelude, core and coda.
            query: [batch, heads, width, head_dim], or [1, heads, n, head_dim].
            key, value: the same with `kv_heads`.
            slot: from `slot(depth)` in the core, the readout in the coda, 0 in the prelude.

        Returns:
            Shaped as `query`.
        """
        return self.cache.attend(layer, query, key, value, self, slot)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """Heads [1, heads, n, head_dim] in the shape attention needs, [rows, heads, width, head_dim]."""
        if self.grid is None or self.grid.rows == 1:
            return x
        return self.grid.pad(x.transpose(1, 2)).transpose(1, 2)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`."""
        if self.grid is None or self.grid.rows == 1:
            return x
        return self.grid.unpad(x.transpose(1, 2)).transpose(1, 2)

    def bias(self, query: torch.Tensor) -> torch.Tensor | None:
        """The mask as 0 and -inf in the query's dtype, to add to attention scores; cached."""
        if self.mask is not None and (self._bias is None or self._bias.dtype != query.dtype):
            self._bias = query.new_zeros(self.mask.shape).masked_fill_(~self.mask, float("-inf"))
        return self._bias

    def bias_of_positions(self, query: torch.Tensor) -> torch.Tensor:
        """`bias` of each position, [n, extent], for a pass over rows end to end; cached.

        Made from the positions: a placement with `start` need not have a mask, or has one for all rows.
        """
        if self._position_bias is None or self._position_bias.dtype != query.dtype:
            hidden = torch.arange(self.extent, device=query.device) > self.positions[0][:, None]
            bias = query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))
            self._position_bias = bias
        return self._position_bias

    def runs(self, slots: tuple[int, ...]) -> list[Run]:
        """The runs of positions whose slots are a constant more than `slots` (see `Run`); cached."""
        base = slots[0]
        relative = tuple(slot - base for slot in slots) if base else slots
        if relative not in self._runs:
            self._runs[relative] = find_runs(relative, self.widths, self.positions.device)
        return self._runs[relative]

    def open_block(self, block: torch.Tensor) -> None:
        """Let positions of a row see each other in both directions; to be called before any of them attends.

        Args:
            block: bool, shaped as `positions`. Positions of a row where it is True also see the later ones among them.
        """
        queries, asking = (x if self.grid is None else self.grid.pad(x) for x in (self.positions, block))
        mask = self.mask
        if mask is None:
            mask = torch.arange(self.extent, device=queries.device) <= queries.clamp_min(0)[:, None, :, None]
        # Keys are in the order of their positions; one place more, for padding, whose position is -1.
        keys = torch.zeros(len(self.seats), self.extent + 1, dtype=torch.bool, device=queries.device)
        keys[self.rows, self.positions] = block
        self.mask = mask | (asking[:, None, :, None] & keys[:, None, None, :-1])
        self.is_causal = False

    @property
    def widths(self) -> list[int]:
        """Positions of each row, for a pass over rows end to end."""
        return self.grid.widths

    def to(self, device: torch.device, **kwargs: Any) -> Placement:
        """This placement on another device, cached. (accelerate calls it when layers are on several devices.)"""
        device = torch.device(device)
        if self.positions.device == device:
            return self
        if device not in self._copies:
            tensors = {name: getattr(self, name) for name in ("positions", "rows", "mask", "ids", "rotary")}
            moved = {name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()}
            self._copies[device] = replace(self, **moved, _bias=None, _position_bias=None, _runs={}, _copies={})
        return self._copies[device]


def absolute_positions(
    attention_mask: torch.Tensor | None, seen: int, shape: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, int | None]:
    """Positions of the columns after the first `seen`, counted from each row's first real token.

    Args:
        attention_mask: [batch, seen + width], or None without padding.
        shape: batch and width.

    Returns:
        int64 [batch, width] with -1 for padding, and the first position without a mask (otherwise None).
    """
    batch, width = shape
    if attention_mask is None:
        return torch.arange(seen, seen + width, device=device).expand(batch, width), seen
    mask = attention_mask.to(device)
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, -1)[:, -width:], None
