"""Keys and values of a recurrent-depth model, addressed by absolute position."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from .attention import CHUNK, attention
from .unpadding import Unpadding


@dataclass
class Placement:
    """Where the positions of one model pass stand: made once per pass, read by every layer.

    Attributes:
        positions: int64 [batch, width], absolute positions counted from each row's first real token; -1 is padding.
            With an `unpadding` int64 [1, n], those of all rows.
        extent: every position is below this.
        start: the first position when all rows stand at start, start + 1, ..., else None.
        mask: bool [batch, 1, width, extent], True where a query sees a key; None when every key is seen, or with
            `is_causal`: then the positions are the last ones before `extent`, and see those up to their own.
        bias: the same as 0 and -inf in the dtype of the queries, made by the first layer that needs it.
        unpadding: how the positions of ragged rows came to be one row, if they have.
        rotary: what the family's attention needs to rotate queries and keys, filled by the family.
        indices: slots of the columns as index tensors, made once each.
    """

    positions: torch.Tensor
    extent: int
    start: int | None
    mask: torch.Tensor | None
    is_causal: bool = False
    unpadding: Unpadding = field(default_factory=Unpadding)
    rotary: Any = None
    bias: torch.Tensor | None = None
    indices: dict = field(default_factory=dict)
    copies: dict = field(default_factory=dict)

    def to(self, device: torch.device, **kwargs) -> "Placement":
        """This placement on another device (accelerate asks for it where layers stand on several), made once each."""
        if self.positions.device == torch.device(device):
            return self
        if device not in self.copies:
            moved = {name: getattr(self, name) for name in ("positions", "mask", "unpadding", "rotary")}
            moved = {name: None if tensor is None else tensor.to(device) for name, tensor in moved.items()}
            self.copies[device] = replace(self, **moved, bias=None, indices={}, copies={})
        return self.copies[device]

    @cached_property
    def rows(self) -> torch.Tensor:
        """Which row each position is of: int64 [batch, 1], or [1, n] without padding; made once, as the mask is."""
        if self.unpadding.rows is not None:
            return self.unpadding.rows[None]
        return torch.arange(len(self.positions), device=self.positions.device)[:, None]

    def mask_for(self, query: torch.Tensor) -> torch.Tensor | None:
        """The mask in the form attention adds to its scores; a bool mask would be converted anew in every layer."""
        if self.mask is not None and (self.bias is None or self.bias.dtype != query.dtype):
            self.bias = query.new_zeros(self.mask.shape).masked_fill_(~self.mask, float("-inf"))
        return self.bias


def absolute_positions(
    attention_mask: torch.Tensor | None, seen: int, shape: tuple[int, int], device: torch.device
) -> tuple[torch.Tensor, int | None]:
    """Positions of the columns after the first `seen`, counted from each row's first real token.

    Args:
        attention_mask: [batch, seen + width], or None when there is no padding.
        shape: batch and width.

    Returns:
        int64 [batch, width] with -1 for padding, and the first of them where all rows are alike (else None).
    """
    batch, width = shape
    if attention_mask is None:
        return torch.arange(seen, seen + width, device=device).expand(batch, width), seen
    mask = attention_mask.to(device)
    return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, -1)[:, -width:], None


class NoCache:
    """Attention among the positions of one call only: training, and `forward(use_cache=False)`."""

    placement: Placement | None = None

    def place(self, positions: torch.Tensor, start: int | None = None, extent: int | None = None) -> Placement:
        """Make the placement of a pass (see `RecurrentDepthCache.place`)."""
        if start is not None:
            self.placement = Placement(positions, positions.shape[1], start, None, is_causal=True)
        else:
            query = positions.clamp_min(0)[:, None, :, None]
            key = positions[:, None, None, :]
            self.placement = Placement(positions, positions.shape[1], None, (key <= query) & (key >= 0))
        return self.placement

    def slot(self, depth: int) -> int:
        """Nothing is kept from one recurrence to the next."""
        return 0

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slot: int = 0
    ) -> torch.Tensor:
        """Attention of the placed positions to each other, [batch, heads, width, head_dim]."""
        placed = self.placement.to(query.device)
        return attention(query, key, value, placed.mask_for(query), placed.is_causal)


class RecurrentDepthCache(Cache):
    """Preallocated keys and values of the prelude, core and coda layers.

    A layer's keys are one tensor [slots, batch, heads, capacity + 1, head_dim], written at absolute positions counted
    from each row's first real token: padding is never stored (the last place of `capacity + 1` takes it and is never
    read). Dropping tokens moves a number; nothing is copied. Memory, in bytes, is

        2 x batch x heads x (capacity + 1) x head_dim x itemsize x (prelude + slots x core + readouts x coda)

    with slots = 1 for `kv_sharing="last"`, slots = num_steps for `"none"` and slots = n for `kv_sharing=n`; readouts is
    1, and 2 after a sampler has started a timeline of drafts (`start_readout`).

    Args:
        num_prelude_layers, num_core_layers, num_coda_layers: layers of each part.
        num_steps: recurrences of a position; the number of slots of the core layers without sharing.
        kv_sharing: "last" (one entry per layer and position, overwritten by later recurrences; section 4.1 of arXiv
            2510.14961), "none" (one entry per recurrence, the model's native semantics) or n, a budget of n entries:
            recurrence k (from 0) writes and reads entry k modulo n (section 6.2 of arXiv 2502.05171). 1 is "last".
        capacity: positions to allocate at first; grows by doubling when a longer sequence comes.

    Raises:
        ValueError: `kv_sharing` is none of these, or `num_steps` < 1.
    """

    def __init__(
        self,
        num_prelude_layers: int,
        num_core_layers: int,
        num_coda_layers: int,
        num_steps: int,
        kv_sharing: str | int = "last",
        capacity: int = 0,
    ):
        super().__init__(layers=[])
        if kv_sharing not in ("last", "none") and not (type(kv_sharing) is int and kv_sharing >= 1):
            raise ValueError(f"kv_sharing={kv_sharing!r} is unknown: use 'last', 'none' or a number of slots.")
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        self.num_prelude_layers = num_prelude_layers
        self.num_core_layers = num_core_layers
        self.num_coda_layers = num_coda_layers
        self.num_steps = num_steps
        self.kv_sharing = "last" if kv_sharing == 1 else kv_sharing
        self.capacity = capacity
        self.columns = 0
        self.placement: Placement | None = None
        self._whole: tuple[list, list, list[int]] | None = None
        self.keys: list[torch.Tensor | None] = [None] * self.num_layers
        self.values: list[torch.Tensor | None] = [None] * self.num_layers

    @property
    def num_layers(self) -> int:
        return self.num_prelude_layers + self.num_core_layers + self.num_coda_layers

    def slots(self, layer: int) -> int:
        """Entries per position of a layer."""
        in_core = 0 <= layer - self.num_prelude_layers < self.num_core_layers
        return self.core_slots if in_core else 1

    @property
    def core_slots(self) -> int:
        """Entries per position of a core layer."""
        return {"last": 1, "none": self.num_steps}.get(self.kv_sharing, self.kv_sharing)

    def slot(self, depth: int | range | torch.Tensor) -> int | range | torch.Tensor:
        """The slot of the core layers that recurrence `depth` (0-based) writes and reads.

        `depth` may be int64 [batch, width], one recurrence per position; it is then returned as it is, for `attend`.
        So is a range, one recurrence per column (`kv_sharing="none"` only).
        """
        if self.kv_sharing == "last":
            return 0
        if isinstance(depth, torch.Tensor):
            return depth
        if self.kv_sharing != "none":
            return depth % self.kv_sharing
        deepest = depth[-1] if isinstance(depth, range) else depth
        if deepest >= self.num_steps:
            raise ValueError(
                f"recurrence {deepest} does not fit a cache made for num_steps={self.num_steps} and kv_sharing='none': "
                "make the cache with a larger num_steps, or share keys and values with kv_sharing='last'."
            )
        return depth

    def place(
        self,
        positions: torch.Tensor,
        start: int | None = None,
        extent: int | None = None,
        unpadding: Unpadding | None = None,
    ) -> Placement:
        """Say where the next passes stand; makes room, and the mask all layers share.

        Args:
            positions: int64 [batch, width], absolute; -1 is padding (stored nowhere, its output means nothing).
            start: first position, when every row of `positions` is start, start + 1, ... (spares the index writes).
            extent: a bound above every position, when known (spares a host sync on an accelerator).
            unpadding: leaves the padding of ragged rows out: the passes get the placement's `positions` and tensors
                unpadded likewise. For slots that are one number (`attend`).
        """
        if start is not None:
            extent = start + positions.shape[1]
        elif extent is None:
            extent = int(positions.max()) + 1
        self._reserve(extent)
        self._leave_inference_mode()
        width, mask = positions.shape[1], None
        is_causal = start is not None and width > 1 and (start == 0 or width > CHUNK)
        if start is None or (width > 1 and not is_causal):
            queries = positions if start is None else positions[:1]
            mask = torch.arange(extent, device=positions.device) <= queries.clamp_min(0)[:, None, :, None]
        unpadding = Unpadding() if unpadding is None else unpadding
        self.placement = Placement(unpadding.unpad(positions), extent, start, mask, is_causal, unpadding)
        return self.placement

    def _reserve(self, extent: int) -> None:
        if extent <= self.capacity:
            return
        capacity = max(extent, 2 * self.capacity)
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if old is not None:
                    new = old.new_zeros(*old.shape[:3], capacity + 1, old.shape[4])
                    new[:, :, :, : self.capacity] = old[:, :, :, : self.capacity]
                    tensors[layer] = new
        self.capacity = capacity

    def _leave_inference_mode(self) -> None:
        """Outside `torch.inference_mode()` what was made inside cannot be written to: go on with a copy."""
        stored = [t for t in (*self.keys, *self.values) if t is not None]
        if torch.is_inference_mode_enabled() or not any(t.is_inference() for t in stored):
            return
        for tensors in (self.keys, self.values):
            tensors[:] = [None if t is None else t.clone() for t in tensors]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        slot: int | Sequence[int] | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Store the keys and values of the placed positions, then attend to all that stands before each.

        Args:
            layer: 0-based over prelude, core, coda.
            query: [batch, heads, width, head_dim].
            key, value: [batch, kv_heads, width, head_dim].
            slot: which entry of the layer, see `slot()`. A tensor [batch, width] gives every position its recurrence;
                before the slots are full it writes all later ones too, so a deeper query sees the last recurrence
                there has been. Without sharing, recurrences past the last slot stay in it. A range or tuple gives
                every column its slot, the same in all rows, and writes no other.

        Returns:
            [batch, heads, width, head_dim].
        """
        if self.keys[layer] is None:
            batch, heads, _, head_dim = key.shape
            batch = self.placement.unpadding.batch or batch
            shape = (self.slots(layer), batch, heads, self.capacity + 1, head_dim)
            # Zeros, not empty: a masked NaN in unwritten memory would still poison 0 * NaN in attention.
            self.keys[layer], self.values[layer] = key.new_zeros(shape), value.new_zeros(shape)
        if isinstance(slot, torch.Tensor):
            return self._attend_by_position(layer, query, key, value, slot)
        if not isinstance(slot, int):
            return self._attend_by_column(layer, query, key, value, slot)
        placed = self.placement.to(query.device)
        keys, values = self.keys[layer][slot], self.values[layer][slot]
        unpadding = placed.unpadding
        if placed.start is not None:
            keys[:, :, placed.start : placed.extent] = key
            values[:, :, placed.start : placed.extent] = value
        else:
            # Two indices around the sliced heads: the result is [batch, width, heads, dim].
            keys[placed.rows, :, placed.positions] = key.transpose(1, 2)
            values[placed.rows, :, placed.positions] = value.transpose(1, 2)
        y = attention(
            unpadding.pad(query.transpose(1, 2)).transpose(1, 2),
            keys[:, :, : placed.extent],
            values[:, :, : placed.extent],
            placed.mask_for(query),
            placed.is_causal,
        )
        return unpadding.unpad(y.transpose(1, 2)).transpose(1, 2)

    def _attend_by_position(self, layer, query, key, value, depth):
        """`attend` for positions at different recurrences: every query reads its own slot (a copy per query)."""
        placed, depth = self.placement.to(query.device), depth.to(query.device)
        slots = self.slots(layer)
        slot = depth.clamp_max(slots - 1) if self.kv_sharing == "none" else depth % slots
        batch, heads, width, head_dim = query.shape
        rows = placed.rows
        numbers = torch.arange(slots, device=key.device)[:, None, None]
        written = (numbers == slot) | ((depth < slots) & (numbers > slot))
        read = []
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            old = stored[:, rows, :, placed.positions]  # [batch, width, slots, heads, head_dim]
            stored[:, rows, :, placed.positions] = torch.where(
                written.permute(1, 2, 0)[..., None, None], new.transpose(1, 2)[:, :, None], old
            )
            read.append(stored[slot, rows, :, : placed.extent].flatten(0, 1))
        key_positions = torch.arange(placed.extent, device=key.device)
        mask = (key_positions <= placed.positions.clamp_min(0)[..., None]).flatten(0, 1)[:, None, None]
        query = query.transpose(1, 2).reshape(batch * width, heads, 1, head_dim)
        y = F.scaled_dot_product_attention(query, *read, mask, enable_gqa=heads != key.shape[1])
        return y.reshape(batch, width, heads, head_dim).transpose(1, 2)

    def _attend_by_column(self, layer, query, key, value, slots: Sequence[int]):
        """`attend` for columns that stand at different recurrences or readouts."""
        placed = self.placement.to(query.device)
        batch, _, width, _ = query.shape
        if slots not in placed.indices:
            # An arange is made on the device; a list would be copied there, which waits for it.
            placed.indices[slots] = (
                torch.arange(slots.start, slots.stop, slots.step, device=key.device)
                if isinstance(slots, range)
                else torch.tensor(slots, device=key.device)
            )
        rows = placed.rows
        for stored, new in ((self.keys[layer], key), (self.values[layer], value)):
            stored[placed.indices[slots], rows, :, placed.positions] = new.transpose(1, 2)
        keys, values = self.keys[layer][..., : placed.extent, :], self.values[layer][..., : placed.extent, :]
        mask = placed.mask_for(query)
        if isinstance(slots, range) and batch <= width:
            # Columns stand a fixed number of recurrences apart: one strided view of a row holds what all of them see.
            view = slice(slots.start, slots[-1] + 1, slots.step)
            read = [
                attention(
                    query[row].transpose(0, 1)[:, :, None],
                    keys[view, row],
                    values[view, row],
                    mask[row].transpose(0, 1)[:, :, None],
                )
                for row in range(batch)
            ]
            return torch.stack([row[:, :, 0].transpose(0, 1) for row in read])
        read = [
            attention(query[:, :, column : column + 1], keys[slot], values[slot], mask[:, :, column : column + 1])
            for column, slot in enumerate(slots)
        ]
        return torch.cat(read, dim=2)

    def start_readout(self, readout: int, source: int) -> None:
        """Give the coda layers a timeline of keys and values, with what stands in another one; a copy of its bytes."""
        first = self.num_prelude_layers + self.num_core_layers
        for tensors in (self.keys, self.values):
            for layer in range(first, self.num_layers):
                stored = tensors[layer]
                if stored.shape[0] <= readout:
                    tensors[layer] = torch.cat((stored, stored[source : source + 1]))
                else:
                    stored[readout] = stored[source]

    def scrub(self, row: int) -> None:
        """Zeros for what is not finite in a row: behind a mask it would still spread, as 0 x NaN."""
        for stored in (*self.keys, *self.values):
            if stored is not None:
                stored[:, row].nan_to_num_(0.0, 0.0, 0.0)

    def settle(self, num_steps: int) -> None:
        """After `num_steps` recurrences of the placed positions: deeper slots get the last recurrence there has been.

        A later position may be refined more often than this one was; it then sees this one's last entry.
        """
        if num_steps >= self.core_slots:
            return
        for layer in range(self.num_prelude_layers, self.num_prelude_layers + self.num_core_layers):
            for stored in (self.keys[layer], self.values[layer]):
                placed = self.placement.to(stored.device)
                last = stored[num_steps - 1, placed.rows, :, placed.positions]
                stored[num_steps:, placed.rows, :, placed.positions] = last[:, :, None]

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before anything was written."""
        return next((t.shape[1] for t in self.keys if t is not None), -1)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values) if t is not None)

    # --- the part of transformers' Cache that generate() and its callers use ---

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of `input_ids` seen so far, left padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit but memory."""
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_linear(self) -> list[bool]:
        """Of each layer, whether it is a linear one: none is.

        transformers takes a cache without layer objects of its own for linear throughout, and would pass the whole text
        where only the new ids are meant.
        """
        return [False] * self.num_layers

    def crop(self, length: int) -> None:
        """Forget the last columns: -n forgets n, 0 none, a positive number keeps that many. Copies nothing."""
        self.columns = min(self.columns, length) if length > 0 else max(self.columns + length, 0)

    def reset(self) -> None:
        self.columns = 0

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` (int64 [rows])."""
        for tensors in (self.keys, self.values):
            tensors[:] = [None if t is None else t.index_select(1, indices.to(t.device)) for t in tensors]

    def keep_rows(self, rows: list[int]) -> None:
        """Work on some rows of the batch alone, in this order; `restore_rows()` brings all of them back.

        Args:
            rows: numbers of rows in the whole batch, whatever is kept now.
        """
        self.restore_rows()
        self._whole = (self.keys[:], self.values[:], rows)
        self.batch_select_indices(torch.tensor(rows))

    def restore_rows(self) -> None:
        """All rows again, those of `keep_rows()` with what was written since."""
        if self._whole is None:
            return
        keys, values, rows = self._whole
        self._whole = None
        for tensors, whole in ((self.keys, keys), (self.values, values)):
            for layer, part in enumerate(tensors):
                if part is None:
                    continue
                full = whole[layer]
                if full.shape[3] < part.shape[3]:
                    full = full.new_zeros(*full.shape[:3], *part.shape[3:])
                    full[:, :, :, : whole[layer].shape[3] - 1] = whole[layer][:, :, :, :-1]
                full[:, rows] = part
                tensors[layer] = full

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows as beam search picked them."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row `repeats` times."""
        for tensors in (self.keys, self.values):
            tensors[:] = [None if t is None else t.repeat_interleave(repeats, dim=1) for t in tensors]

    def __len__(self) -> int:
        return self.num_layers

    def __repr__(self) -> str:
        return (
            f"RecurrentDepthCache(layers={self.num_prelude_layers}/{self.num_core_layers}/{self.num_coda_layers}, "
            f"kv_sharing={self.kv_sharing!r}, num_steps={self.num_steps}, columns={self.columns})"
        )
