"""Keys and values of a recurrent-depth model, addressed by absolute position."""

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache

from .attention import CHUNK
from .gradients import wants_gradients, with_gradients
from .grid import Grid
from .memory import resized, zeros
from .placement import Placement, Slots
from .seats import Seats


class RecurrentDepthCache(Seats, Cache):
    """Preallocated keys and values of the prelude, core and coda layers.

    A layer's keys are one tensor [slots, seats, heads, capacity + 1, head_dim], indexed by absolute position, counted
    from each row's first real token. Padding is written to the last of the `capacity + 1` places, which is never read.
    Every row has a seat. Dropping tokens changes a number and copies nothing. When a text outgrows the capacity, it
    grows by half (with `compile=True` it doubles), but not past `limit`. Growing copies what has been written in each
    seat; on a CPU under Linux it usually copies nothing. Bytes of memory, of which a CPU has taken only those written:

        2 x seats x heads x (capacity + 1) x head_dim x itemsize x (prelude + slots x core + readouts x coda)

    with slots = 1 for `kv_sharing="last"`, slots = num_steps for `"none"` and slots = n for `kv_sharing=n`; readouts is
    1, or 2 once a sampler has started a second readout for drafts (`start_readout`).

    Args:
        num_prelude_layers, num_core_layers, num_coda_layers: layers of each part.
        num_steps: recurrences of a position; the core layers' slots with `kv_sharing="none"`.
        kv_sharing: "last" (one entry per layer and position, overwritten by later recurrences; section 4.1 of arXiv
            2510.14961), "none" (one entry per recurrence, the model's native semantics) or n, a budget of n entries:
            recurrence k (from 0) writes and reads entry k modulo n (section 6.2 of arXiv 2502.05171). 1 is "last".
        capacity: positions to allocate at first.

    Attributes:
        columns: columns of `input_ids` in the cache, including left padding.
        seats: the rows it has memory for.
        limit: positions that no row will pass, if that is known.

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
        self.limit: int | None = None
        self.filled: list[int] = []
        """For each seat, all positions written so far are below this."""
        self.columns = 0
        self.seats = 0
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
        if isinstance(self.kv_sharing, int):
            return self.kv_sharing
        return 1 if self.kv_sharing == "last" else self.num_steps

    def slot(self, depth: int | torch.Tensor | Slots) -> int | torch.Tensor | Slots:
        """The slot that recurrence `depth` (0-based) reads and writes in the core layers.

        Args:
            depth: one number for all positions, or one for each: int64 [1, n], or `Slots` (`kv_sharing="none"` only).

        Raises:
            ValueError: without sharing, a number or `Slots` is past the last slot. (`attend` limits a tensor.)
        """
        if self.kv_sharing == "last":
            return 0
        if isinstance(depth, torch.Tensor):
            return depth  # `attend` maps it to a slot
        if isinstance(self.kv_sharing, int) and isinstance(depth, int):
            return depth % self.kv_sharing
        deepest = max(depth.host) if isinstance(depth, Slots) else depth
        if deepest >= self.num_steps:
            raise ValueError(
                f"recurrence {deepest} does not fit a cache made for num_steps={self.num_steps} and kv_sharing='none': "
                "make the cache with a larger num_steps, or share keys and values with kv_sharing='last'."
            )
        return depth

    # --- placements ---

    def place(self, positions: torch.Tensor, start: int | None = None, extent: int | None = None) -> Placement:
        """The placement of a pass over a grid of rows; row i has seat i.

        Args:
            positions: int64 [batch, width], absolute; -1 is padding (never stored; its output is meaningless).
            start: the first position, if every row's positions are start, start + 1, ...
            extent: an upper bound (exclusive) on the positions, if known (saves a wait for an accelerator).
        """
        if start is not None:
            extent = start + positions.shape[1]
        elif extent is None:
            extent = int(positions.max()) + 1
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        extents = [extent] * len(positions)
        return self._placement(positions, positions, extents, range(len(positions)), rows, start)

    def place_rows(
        self,
        positions: torch.Tensor,
        rows: torch.Tensor,
        widths: Sequence[int],
        extents: Sequence[int],
        start: int | None = None,
        first_seat: int = 0,
        depth: int | torch.Tensor | Slots = 0,
    ) -> Placement:
        """The placement of a pass over the positions of several rows, end to end.

        Args:
            positions: int64 [1, n], absolute. A row's positions may have any order and gaps.
            rows: int64 [1, n], the row of each, counted from 0.
            widths: positions of each row.
            extents: of each row, an upper bound (exclusive) on its positions.
            start: the first position, if every row's positions are start, start + 1, ... up to its extent.
            first_seat: the rows have this seat and those after it, in order.
            depth: recurrences the positions have had; see `Placement`.
        """
        grid = Grid(widths, positions.device)
        seats = range(first_seat, first_seat + len(widths))
        return self._placement(positions, grid.pad(positions), extents, seats, rows, start, depth, grid)

    def place_prompt(
        self,
        positions: torch.Tensor,
        rows: torch.Tensor,
        widths: Sequence[int],
        starts: list[int],
        first_seat: int = 0,
    ) -> Placement:
        """The placement of a pass that reads prompts: `place_rows` for rows of start, start + 1, ... each."""
        extents = [start + width for start, width in zip(starts, widths, strict=True)]
        alike = len(set(widths)) == len(set(starts)) == 1
        at = self.place_rows(positions, rows, widths, extents, starts[0] if alike else None, first_seat)
        at.starts = starts
        return at

    def _placement(
        self,
        positions: torch.Tensor,
        queries: torch.Tensor,
        extents: Sequence[int],
        seats: range,
        rows: torch.Tensor,
        start: int | None,
        depth: int | torch.Tensor | Slots = 0,
        grid: Grid | None = None,
    ) -> Placement:
        extent = max(extents)
        self.reserve(extent, seats.stop)
        for seat, own in zip(seats, extents, strict=True):
            self.filled[seat] = max(self.filled[seat], own)
        self._leave_inference_mode()
        width, mask = queries.shape[1], None
        is_causal = start is not None and width > 1 and (start == 0 or width > CHUNK)
        if start is None or (width > 1 and not is_causal):
            seen_by = queries if start is None else queries[:1]
            mask = torch.arange(extent, device=positions.device) <= seen_by.clamp_min(0)[:, None, :, None]
        return Placement(self, positions, extent, seats, rows, depth, start, mask, is_causal, grid)

    # --- attention ---

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        at: Placement,
        slot: int | torch.Tensor | Slots = 0,
    ) -> torch.Tensor:
        """Store the keys and values of a pass; each position attends to its row's positions up to its own.

        Gradients flow through the keys and values of the pass, not through those of earlier passes.

        Args:
            layer: 0-based over prelude, core, coda.
            query: [batch, heads, width, head_dim], or [1, heads, n, head_dim] for rows end to end.
            key, value: the same with `kv_heads`.
            at: placement of the pass.
            slot: entry of the layer; see `slot()`. A tensor [1, n] holds each position's recurrence. It also writes all
                later slots until every slot has an entry, so a deeper query sees the latest recurrence; with
                `kv_sharing="none"`, recurrences past the last slot use the last. `Slots` writes only the given slots.

        Returns:
            Shaped as `query`, in its dtype.
        """
        at = at.to(query.device)
        if self.keys[layer] is None:
            # Zeros, not empty: a NaN in unwritten memory would spread through a mask, as 0 * NaN.
            shape = (self.slots(layer), self.seats, key.shape[1], self.capacity + 1, key.shape[3])
            self.keys[layer], self.values[layer] = zeros(shape, key), zeros(shape, value)
        dtype, seats = query.dtype, slice(at.seats.start, at.seats.stop)
        keys, values = self.keys[layer][:, seats], self.values[layer][:, seats]
        # If the cache was made under autocast and this is not, or the other way round, it keeps its dtype.
        query, key, value = query.to(keys.dtype), key.to(keys.dtype), value.to(values.dtype)
        if isinstance(slot, torch.Tensor):
            y = self._attend_by_depth(keys, values, query, key, value, at, slot.to(query.device))
        elif isinstance(slot, Slots):
            y = self._attend_by_run(keys, values, query, key, value, at, slot)
        else:
            y = self._attend_at_slot(keys[slot], values[slot], query, key, value, at)
        return y.to(dtype)

    def _attend_at_slot(self, keys, values, query, key, value, at: Placement):
        """`attend` for positions at one slot, whose entries of the rows are `keys` and `values`."""
        read = keys[:, :, : at.extent], values[:, :, : at.extent]
        if wants_gradients(query, key, value):
            read = with_gradients(keys, key, at), with_gradients(values, value, at)
            key, value = key.detach(), value.detach()
        if at.start is not None:
            keys[:, :, at.start : at.extent] = at.pad(key)
            values[:, :, at.start : at.extent] = at.pad(value)
        else:
            # Two index tensors around a slice: the indexed shape is [batch, width, heads, head_dim].
            keys[at.rows, :, at.positions] = key.transpose(1, 2)
            values[at.rows, :, at.positions] = value.transpose(1, 2)
        return at.unpad(at.kernel(at.pad(query), *read, at.bias(query), at.is_causal))

    def _attend_by_depth(self, keys, values, query, key, value, at: Placement, depth: torch.Tensor):
        """`attend` for positions at different recurrences: every query reads its own slot (a copy per query)."""
        slots = keys.shape[0]
        slot = depth.clamp_max(slots - 1) if self.kv_sharing == "none" else depth % slots
        _, heads, width, head_dim = query.shape
        numbers = torch.arange(slots, device=key.device)[:, None, None]
        written = (numbers == slot) | ((depth < slots) & (numbers > slot))
        read = []
        for stored, new in ((keys, key), (values, value)):
            old = stored[:, at.rows, :, at.positions]  # [1, n, slots, heads, head_dim]
            stored[:, at.rows, :, at.positions] = torch.where(
                written.permute(1, 2, 0)[..., None, None], new.transpose(1, 2)[:, :, None], old
            )
            read.append(stored[slot, at.rows, :, : at.extent].flatten(0, 1))
        key_positions = torch.arange(at.extent, device=key.device)
        mask = (key_positions <= at.positions.clamp_min(0)[..., None]).flatten(0, 1)[:, None, None]
        query = query.transpose(1, 2).reshape(width, heads, 1, head_dim)
        y = at.kernel(query, read[0], read[1], mask)
        return y.reshape(1, width, heads, head_dim).transpose(1, 2)

    def _attend_by_run(self, keys, values, query, key, value, at: Placement, slots: Slots):
        """`attend` for slots known on the host: one view of the row for each run, without copies.

        All positions write before any reads, so those at one slot see each other as in a prompt.
        """
        where = slots.device.to(key.device)
        for stored, new in ((keys, key), (values, value)):
            stored[where, at.rows[0], :, at.positions[0]] = new[0].transpose(0, 1)
        queries, bias, read = query[0].transpose(0, 1), at.bias_of_positions(query), []
        for run in at.runs(slots.host):
            seen, read_values = (
                run.view(stored[:, run.row, :, : at.extent], slots.host[0]) for stored in (keys, values)
            )
            read.append(run.attend(at.kernel, queries, seen, read_values, bias))
        return torch.cat(read).transpose(0, 1)[None]

    def start_readout(self, readout: int, source: int, seats: range) -> None:
        """Start another readout in the coda layers of some seats, with a copy of the entries of `source`."""
        first = self.num_prelude_layers + self.num_core_layers
        for tensors in (self.keys, self.values):
            for layer in range(first, self.num_layers):
                stored = tensors[layer]
                if stored.shape[0] <= readout:
                    stored = tensors[layer] = resized(
                        stored, readout + 1, stored.shape[1], stored.shape[3], self.filled
                    )
                for seat in seats:
                    stored[readout, seat, :, : self.filled[seat]] = stored[source, seat, :, : self.filled[seat]]

    def settle(self, at: Placement, num_steps: int) -> None:
        """After `num_steps` recurrences of a pass, copy the last entry to the deeper slots.

        A later position that is refined more often then sees that entry.
        """
        if num_steps >= self.core_slots:
            return
        for layer in range(self.num_prelude_layers, self.num_prelude_layers + self.num_core_layers):
            for tensors in (self.keys, self.values):
                stored = tensors[layer][:, at.seats.start : at.seats.stop]
                there = at.to(stored.device)
                last = stored[num_steps - 1, there.rows, :, there.positions]
                stored[num_steps:, there.rows, :, there.positions] = last[:, :, None]

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
        """Columns of `input_ids` seen so far, including left padding."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: only memory limits the length."""
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_linear(self) -> list[bool]:
        """False for each layer.

        transformers treats a cache without its own layer objects as linear, and would then pass the whole text again
        instead of only the new ids.
        """
        return [False] * self.num_layers

    def crop(self, length: int) -> None:
        """Drop the last columns: -n drops n, 0 none, and a positive number keeps that many. Copies nothing."""
        self.columns = min(self.columns, length) if length > 0 else max(self.columns + length, 0)

    def reset(self) -> None:
        self.columns = 0

    def __len__(self) -> int:
        return self.num_layers

    def __repr__(self) -> str:
        return (
            f"RecurrentDepthCache(layers={self.num_prelude_layers}/{self.num_core_layers}/{self.num_coda_layers}, "
            f"kv_sharing={self.kv_sharing!r}, num_steps={self.num_steps}, columns={self.columns})"
        )
