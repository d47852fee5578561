"""The positions of all rows in one tick."""

from __future__ import annotations

from functools import cached_property

import torch

from .choice import Prefix, TokenChoice, choose, guess
from .position import NEW, Position
from .row import Row

Members = list[tuple[int, Position]]
"""Positions of one row, each with its distance from the row's front."""


class Wave:
    """The positions of several rows, end to end, with everything a tick needs on the device.

    All of it moves in one copy: another copy in the middle of a tick would wait for the device.

    Args:
        rows: the rows, in the order of their seats.
        device: device of the tensors.
        positions: each row's positions in the order to process them; by default its wave, front first.

    Attributes:
        widths: positions of each row.
        ids, positions, steps, seeds: int64 [1, n]: input ids, absolute positions, recurrences so far, seeds.
        seats: int64 [1, n], the row each position belongs to.
        fresh: bool [1, n], positions without a state.
    """

    def __init__(
        self, rows: list[Row], device: torch.device, positions: list[list[tuple[int, Position]]] | None = None
    ):
        self.rows, self.device = rows, device
        self.members = [list(enumerate(row.wave)) for row in rows] if positions is None else positions
        self.widths = [len(members) for members in self.members]
        cells = [
            (position.token, row.front + place, position.steps, row.seed, seat, position.cell)
            for seat, (row, members) in enumerate(zip(rows, self.members, strict=True))
            for place, position in members
        ]
        self.cells = [cell for *_, cell in cells]
        """For each position, the index of its state in the last tick's tensors."""
        self.new = [index for index, cell in enumerate(self.cells) if cell == NEW]
        """Indices of the positions without a state."""
        # One row per column of `cells`, so that a single copy moves everything.
        moved = [[column] for column in zip(*cells, strict=True)]
        packed = torch.tensor(moved, device=device)
        self.ids, self.positions, self.steps, self.seeds, self.seats, self._cells = packed.unbind()
        self.fresh = self._cells < 0
        self._moved: dict[tuple[tuple[int, ...], torch.device], torch.Tensor] = {}
        """Index tensors of `take`, by index and device."""

    def __len__(self) -> int:
        return len(self.cells)

    @cached_property
    def extents(self) -> list[int]:
        """One more than the last position of each row."""
        pairs = zip(self.rows, self.members, strict=True)
        return [row.front + 1 + max(place for place, _ in members) for row, members in pairs]

    @property
    def start(self) -> int | None:
        """The first position if all rows have the same front and width, otherwise None."""
        fronts, widths = {row.front for row in self.rows}, set(self.widths)
        return self.rows[0].front if len(fronts) == len(widths) == 1 else None

    @cached_property
    def prefixes(self) -> list[tuple[TokenChoice, Prefix]]:
        """For each position, its prefix and the `TokenChoice` for the token after it."""
        return [
            (row.call.choice, Prefix(row.number, len(row.ids) + place, len(row.ids)))
            for row, members in zip(self.rows, self.members, strict=True)
            for place, _ in members
        ]

    def choose(self, logits: torch.Tensor, index: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that positions predict, int64 [1, n], and the scores behind the choice, [1, n, vocabulary].

        Args:
            logits: [1, n, vocabulary], of all positions or of those in `index`.
        """
        index = range(len(self)) if index is None else index
        prefixes = [self.prefixes[cell] for cell in index]
        facts = [self.take(x, list(index)) for x in (self.ids, self.positions, self.seeds)]
        return choose(logits, *facts, prefixes)

    def guess(self, index: list[int], logits: torch.Tensor, distance: int) -> torch.Tensor:
        """Guesses of the tokens that positions to the right of those in `index` predict, int64 [1, n].

        Args:
            logits: [1, n, vocabulary].
            distance: how far to the right.
        """
        positions, seeds = (self.take(x, index) for x in (self.positions, self.seeds))
        return guess(logits, positions + distance, seeds, [self.prefixes[cell][0] for cell in index])

    def carry(self, old: torch.Tensor | None, fresh: torch.Tensor | None) -> torch.Tensor:
        """The last tick's values at this tick's positions.

        Args:
            old: [1, positions of the last tick, ...]; None before the first.
            fresh: [1, new positions, ...], values of the positions without a state, in order; None if there are none.

        Returns:
            [1, n, ...].
        """
        if old is None or len(self.new) == len(self.cells):
            return fresh
        stays = [cell for cell in self.cells if cell != NEW]
        if stays == list(range(stays[0], stays[0] + len(stays))):
            # Usual with one row: the old positions are one slice, and the new ones all come before or after it.
            kept = old[:, stays[0] : stays[0] + len(stays)]
            if fresh is None:
                return kept
            if self.cells[0] != NEW and self.new[0] == len(stays):
                return torch.cat((kept, fresh.to(old.device)), dim=1)
            if self.new[-1] == len(self.new) - 1:
                return torch.cat((fresh.to(old.device), kept), dim=1)
        if fresh is None:
            return old.index_select(1, self._cells[0].to(old.device))
        # Append the new positions to the old tensor, then gather.
        behind = old.shape[1] + self.fresh.cumsum(-1) - 1
        source = torch.where(self.fresh, behind, self._cells)[0].to(old.device)
        return torch.cat((old, fresh.to(old.device)), dim=1).index_select(1, source)

    def recall(self, memory: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The hooks' memory of the last tick at this tick's positions; arbitrary values where a position is new."""
        index = self._cells[0].clamp_min(0)
        return {key: kept.index_select(1, index.to(kept.device)) for key, kept in memory.items()}

    def take(self, x: torch.Tensor, index: list[int]) -> torch.Tensor:
        """Select positions of [1, n, ...] by index."""
        if index == list(range(index[0], index[0] + len(index))):
            return x[:, index[0] : index[0] + len(index)]
        key = tuple(index), x.device
        if key not in self._moved:
            # Moving it waits for the device, so it is moved once, whatever is selected by it.
            self._moved[key] = torch.tensor(index, device=x.device)
        return x.index_select(1, self._moved[key])

    def split(self, values: list) -> list[list]:
        """Split a list of n values by row."""
        split, begin = [], 0
        for width in self.widths:
            split.append(values[begin : begin + width])
            begin += width
        return split

    def settle(self) -> None:
        """Make this tick's tensors those that `cell` indexes from now on."""
        for index, position in enumerate(position for members in self.members for _, position in members):
            position.cell = index
        for row, members in zip(self.rows, self.members, strict=True):
            row.last_cell = members[-1][1].cell
