"""The positions being refined: ragged over rows, contiguous within a row."""

import torch

from ..cache.unpadding import Unpadding


class Wavefront:
    """Where each row's wave stands, its input tokens, its latent states and how often they were refined.

    Column j of row b is absolute position `fronts[b] + j`; columns past a row's width are padding (position -1).
    The bookkeeping is host integers, moved once a tick; states stay on the device.

    Attributes:
        fronts: per row, the first position that is not frozen.
        tokens: per row, the ids at its positions; the first is committed, the others are drafts.
        steps: per row, recurrences of each position since its input token last changed.
        states: [batch, width, channels], or None before the first tick.
        memory: what hooks keep from tick to tick, [batch, last width, ...] each.
    """

    def __init__(self, fronts: list[int], tokens: list[list[int]], device: torch.device):
        self.fronts = fronts
        self.tokens = tokens
        self.steps = [[0] * len(row) for row in tokens]
        self.device = device
        self.states: torch.Tensor | None = None
        self.memory: dict[str, torch.Tensor] = {}
        # Which column of the last tick each column was, or -1 for a position that is new.
        self.origins = [[-1] * len(row) for row in tokens]
        self.moved_from: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return max(map(len, self.tokens))

    @property
    def extent(self) -> int:
        """A bound above every position."""
        return max(front + len(row) for front, row in zip(self.fronts, self.tokens, strict=True) if row)

    @property
    def start(self) -> int | None:
        """The first position when all rows stand alike, else None."""
        alike = len(set(self.fronts)) == 1 and len(set(map(len, self.tokens))) == 1
        return self.fronts[0] if alike else None

    def _grid(self, rows: list[list[int]], fill: int) -> list[list[int]]:
        width = self.width
        return [row + [fill] * (width - len(row)) for row in rows]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """input_ids, positions (-1 past a row's width), step counts and fresh, [batch, width] each.

        The last is bool, the others int64. All travel to the device together, and the origins for `recall` and `carry`
        with them: a copy in the middle of a tick would wait for the device.
        """
        spans = zip(self.fronts, self.tokens, strict=True)
        grids = (
            self._grid(self.tokens, 0),
            self._grid([list(range(front, front + len(row))) for front, row in spans], -1),
            self._grid(self.steps, 0),
            self._grid([[origin < 0 for origin in row] for row in self.origins], 0),
            self._grid(self.origins, -1),
        )
        input_ids, positions, steps, fresh, self.moved_from = torch.tensor(grids, device=self.device).unbind()
        return input_ids, positions, steps, fresh.bool()

    def unpadding(self, positions: torch.Tensor) -> Unpadding:
        """Of the grid that `tensors()` gave, whose positions these are."""
        count = sum(map(len, self.tokens))
        return Unpadding() if count == positions.numel() else Unpadding.of(positions >= 0, count)

    @property
    def first_fresh(self) -> int:
        """The first column in which some row has a position it did not have a tick ago; `width` when there is none."""
        return min((row.index(-1) for row in self.origins if -1 in row), default=self.width)

    def recall(self) -> dict[str, torch.Tensor]:
        """What is in memory, [batch, width, ...] at the columns `tensors()` gave; anything where a position is new."""
        if not self.memory:
            return {}
        origins = self.moved_from.clamp_min(0)
        rows = torch.arange(len(origins), device=self.device)[:, None]
        return {key: kept[rows.to(kept.device), origins.to(kept.device)] for key, kept in self.memory.items()}

    def carry(self, old: torch.Tensor | None, fresh: torch.Tensor) -> torch.Tensor:
        """Last tick's values at the columns `tensors()` gave.

        Args:
            old: [batch, last width, channels], or None before the first tick.
            fresh: [batch, width - first_fresh, channels], the values of positions that are new.

        Returns:
            [batch, width, channels].
        """
        if old is None:
            return fresh
        first, fresh = self.first_fresh, fresh.to(old.device)
        if len(self.origins) == 1:
            origin = self.origins[0][0] if first else 0
            return torch.cat((old[:, origin : origin + first], fresh), dim=1)
        origins = self.moved_from.to(old.device)
        moved = old.gather(1, origins.clamp_min(0)[..., None].expand(-1, -1, old.shape[-1]))
        tail = torch.where((origins[:, first:] >= 0)[..., None], moved[:, first:], fresh)
        return torch.cat((moved[:, :first], tail), dim=1)

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        for name in ("fronts", "tokens", "steps", "origins"):
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in rows])
        if self.states is not None:
            self.states = self.states[torch.tensor(rows, device=self.states.device)]
        self.memory = {key: kept[torch.tensor(rows, device=kept.device)] for key, kept in self.memory.items()}

    def end_row(self, row: int) -> None:
        """Drop all of a row's positions."""
        self.tokens[row], self.steps[row], self.origins[row] = [], [], []

    def narrow(self, states: torch.Tensor | None) -> None:
        """Back to the states of a tick ago, [batch, last width, channels], and to the front position of every row."""
        self.states = states
        for values in (self.tokens, self.steps, self.origins):
            values[:] = [row[:1] for row in values]

    def advance(self, row: int, frozen: int, predictions: list[int], width: int, recurrences: int) -> None:
        """Drop a row's first `frozen` positions, take the new drafts, and fill up to `width` positions.

        Args:
            predictions: for each position of the row's wave, the token it predicts.
            width: of the row's next wave; 0 ends the row. Positions beyond the last prediction repeat it as draft.
            recurrences: how many this tick made.
        """
        before, steps = self.tokens[row], self.steps[row]
        following = [before[0], *predictions][frozen:]
        following += following[-1:] * (width - len(following))
        self.tokens[row] = following[:width]
        kept = range(frozen, min(len(before), frozen + width))
        fresh = width - len(kept)
        self.steps[row] = [
            steps[column] + recurrences if before[column] == following[column - frozen] else 0 for column in kept
        ] + [0] * fresh
        self.origins[row] = [*kept, *[-1] * fresh]
        self.fronts[row] += frozen
