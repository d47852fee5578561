"""Initial states of new positions."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..models.decoding_heads import DecodingHeads
from ..models.interface import RecurrentDepthInterface
from ..settings.early_exit import EarlyExitConfig
from .position import NEW
from .row import Row
from .wave import Wave

BLOCK = 32
"""Positions drawn at once. The noise is keyed by position, so drawing it early changes only the time."""


class StateStarts:
    """s0 of the positions that enter a wave.

    Noise is drawn for `BLOCK` positions of a row at a time, because one position costs as many small operations as 32.
    A state that starts from the injected embedding is made once the embedding is known, and so is one that the model's
    start head predicts (`learned_start`).

    Args:
        model: whose `initialize_state` or start head to use.
        config: has `state_scale`, the factor on the noise.

    Raises:
        ValueError: `learned_start` is set, and the model has no start head.
    """

    def __init__(self, model: RecurrentDepthInterface, config: EarlyExitConfig):
        self.model, self.scale = model, config.state_scale
        self.heads = _with_start(model) if config.learned_start else None

    def take(self, wave: Wave, e: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor | None:
        """Initial states of the wave's new positions, [1, new, channels]; None if there are none.

        Args:
            e: [1, n, channels], the wave's injected embeddings.
            states: [1, positions of the last tick, channels]; None before the first.
        """
        if not wave.new:
            return None
        if self.heads is not None:
            return self._predicted(self.heads, wave, e, states)
        if not self.model.starts_from_noise:
            e, positions, seeds = (wave.take(x, wave.new) for x in (e, wave.positions, wave.seeds))
            return self.model.initialize_state(e, positions, seeds, self.scale)
        starts = [
            self._of_row(row, row.front + place, count, e, wave.positions) for row, place, _, count in _entering(wave)
        ]
        return starts[0] if len(starts) == 1 else torch.cat(starts, dim=1)

    def _of_row(self, row: Row, first: int, count: int, e: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Initial states of `count` positions of a row, starting at `first`: [1, count, channels]."""
        if row.starts is None or not row.starts[0] <= first <= row.starts[0] + row.starts[1].shape[1] - count:
            ahead = torch.arange(first, first + max(BLOCK, count), device=positions.device)[None]
            like, seeds = e[:, :1].expand(-1, ahead.shape[1], -1), torch.full_like(ahead, row.seed)
            row.starts = first, self.model.initialize_state(like, ahead, seeds, self.scale)
        begin, block = row.starts
        return block[:, first - begin : first - begin + count]

    def _predicted(
        self, heads: DecodingHeads, wave: Wave, e: torch.Tensor, states: torch.Tensor | None
    ) -> torch.Tensor:
        """What the start head predicts, from left to right: [1, new, channels].

        A row's first new position reads the newest state on its left: of its wave, of the position that froze last, or
        of the prompt. The next one reads the prediction of the first, and so on.
        """
        entering = list(_entering(wave))
        lefts = []
        for row, place, first, _ in entering:
            cell = wave.cells[first - 1] if place else row.last_cell
            # Slices here and below: an index tensor would wait for the device.
            lefts.append(row.prompt_state if cell is None else states[:, cell : cell + 1])  # type: ignore[index]
        starts: list[list[torch.Tensor]] = [[] for _ in entering]
        for step in range(max(count for *_, count in entering)):
            going = [number for number, (*_, count) in enumerate(entering) if count > step]
            own = [entering[number][2] + step for number in going]
            inputs = [e[:, index : index + 1] for index in own], [lefts[number] for number in going]
            predicted = heads.start(*(torch.cat(each, dim=1) for each in inputs)).split(1, dim=1)
            for number, start in zip(going, predicted, strict=True):
                lefts[number] = start
                starts[number].append(start)
        return torch.cat([start for each in starts for start in each], dim=1)


def _entering(wave: Wave) -> Iterator[tuple[Row, int, int, int]]:
    """Each row with new positions, which are at the end of its wave; the first one's distance from the row's front and
    its index in the wave; and how many they are."""
    begin = 0
    for row, width in zip(wave.rows, wave.widths, strict=True):
        if count := wave.cells[begin : begin + width].count(NEW):
            yield row, width - count, begin + width - count, count
        begin += width


def _with_start(model: RecurrentDepthInterface) -> DecodingHeads:
    """The model's heads, with a start head.

    Raises:
        ValueError: there is none.
    """
    if model.decoding_heads is not None and model.decoding_heads.has_start:
        return model.decoding_heads
    if model.has_injected_embedding:
        remedy = "run `hf-diffusion-forcing fit`"
    else:
        remedy = "its core reads no injected embedding, so its tokens enter by the initial state"
    raise ValueError(
        f"learned_start=True needs a start head, and this model has none: {remedy}, or leave learned_start out."
    )
