"""A record of every tick of a call, wave by wave."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..files import write_file
from ..settings.validation import nearest

MAX_BYTES = 256 * 2**20
"""Limit on a trace's host memory; later waves are counted but not kept."""

BYTES_PER_WAVE, BYTES_PER_POSITION = 1200, 160
"""The most memory a `WaveTick` takes, and what each of its positions adds."""


def as_bits(values: torch.Tensor) -> torch.Tensor:
    """Floats as int64 of the same shape, so that one tensor carries them to the host with ids and flags."""
    return values.float().view(torch.int32).long()


def from_bits(bits: list[int]) -> list[float | None]:
    """The inverse of `as_bits`; None for a value that is not finite."""
    values = torch.tensor(bits, dtype=torch.int32).view(torch.float32).tolist()
    return [value if math.isfinite(value) else None for value in values]


@dataclass(kw_only=True, slots=True)
class WaveTick:
    """The wave of one row in one tick. Per-position lists start at the front.

    Attributes:
        tick: number of the tick in the call, from 1.
        row: row of the batch.
        start: absolute position of the front, counted from the row's first real token.
        core_passes: recurrences of this tick.
        tokens: ids that were refined; the first is committed, the others are drafts.
        recurrences: those of each position after the tick, counted since its input token last changed.
        predictions: the next token each position predicts after the tick; None where it was not read out.
        exit_values: the values the exit criterion compared with its threshold; None if there is no value yet, if it is
            not finite, and for samplers and criteria without such values.
        committed: the ids this tick made final: predictions of its first positions, in order, unless a logits processor
            that keeps a state chose another one.
        discarded: for the speculative wavefront, the recurrences of each position dropped after the tick because its
            token, or one before it, was a wrong draft.
        abandoned: the tick does not count: a draft overflowed, and the tick was repeated with only the fronts.
        settled: whether the remaining recurrences are estimated not to change each position's prediction (see
            `hooks.settling`); empty where this is not estimated: in `"adaptive"` with a criterion that reads no logits,
            in the lossless wavefront, whose tokens have all recurrences, and when sampling.
        latents: float32 [width, channels] on the CPU, the states after the tick; None unless requested. `to_dict()`
            omits them and == ignores them.
    """

    tick: int
    row: int
    start: int
    core_passes: int
    tokens: list[int]
    recurrences: list[int]
    predictions: list[int | None]
    exit_values: list[float | None]
    committed: list[int] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    abandoned: bool = False
    settled: list[bool] = field(default_factory=list)
    latents: torch.Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def width(self) -> int:
        """Positions of the wave."""
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """An upper bound on its host memory."""
        latents = 0 if self.latents is None else self.latents.nbytes
        return BYTES_PER_WAVE + BYTES_PER_POSITION * self.width + latents


@dataclass(kw_only=True, slots=True)
class TokenTrace:
    """The history of one new token.

    Attributes:
        position: absolute position of the token; the position before it predicted it.
        token: its id.
        tick: the tick that committed it; None for a row's first token, which comes from the prompt's own pass.
        recurrences: all that the position that predicted it had, including those on wrong drafts; 0 for a first token.
        exit_value: the criterion's value when it was committed.
        settled: whether the remaining recurrences were then estimated not to change it; False for a token that only met
            the criterion or spent its budget, None where this is not known.
        readouts: the earlier and final predictions of that position, in tick order, as pairs of its recurrences (since
            its input token last changed) and the predicted id.
    """

    position: int
    token: int
    tick: int | None = None
    recurrences: int = 0
    exit_value: float | None = None
    settled: bool | None = None
    readouts: list[tuple[int, int]] = field(default_factory=list)


@dataclass(kw_only=True)
class Trace:
    """A record of every tick of a `generate()` call.

    `generate(..., return_trace=True, return_dict_in_generate=True)` returns it as `output.trace`; with
    `return_trace="latents"` it holds the latent states too.

    A tick takes at most 1200 + 160 x width bytes of host memory per row, plus 4 x width x channels with latents. A
    trace stops at 256 MiB: later waves are counted in `unrecorded` but not kept.

    Attributes:
        sampler: name of the sampler.
        budget: the most recurrences a position at the front gets.
        criterion: name of the exit criterion; None for a sampler without one.
        threshold: the criterion's threshold, if it has one.
        starts: per row of the batch, the absolute position of its first new token.
        first_tokens: per row, that token, predicted by the prompt's own pass.
        waves: sorted by tick, then by row. Rows that have ended have none.
        unrecorded: waves that were not kept.
    """

    sampler: str
    budget: int
    criterion: str | None = None
    threshold: float | None = None
    starts: list[int] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)
    waves: list[WaveTick] = field(default_factory=list)
    unrecorded: int = 0

    def __post_init__(self):
        self._room = MAX_BYTES - sum(wave.nbytes for wave in self.waves)

    def append(self, wave: WaveTick) -> None:
        """Keep a wave if there is room for it and all earlier ones were kept."""
        self._room -= wave.nbytes
        if self._room < 0:
            self.unrecorded += 1
        else:
            self.waves.append(wave)

    def cut(self, row: int, count: int) -> None:
        """End a row after `count` new tokens; later commits were taken back."""
        left = count - 1
        for wave in self.of_row(row):
            wave.committed = wave.committed[: max(left, 0)]
            left -= len(wave.committed)

    def of_row(self, row: int) -> list[WaveTick]:
        """The waves of one row.

        Raises:
            IndexError: the batch has no such row.
        """
        if not 0 <= row < len(self.starts):
            raise IndexError(f"row={row} must be between 0 and {len(self.starts) - 1}.")
        return [wave for wave in self.waves if wave.row == row]

    def new_tokens(self, row: int = 0) -> list[int]:
        """The ids a row has committed, without its prompt."""
        waves = self.of_row(row)
        return [self.first_tokens[row], *(token for wave in waves for token in wave.committed)]

    @property
    def settled(self) -> list[int] | None:
        """Per row, how many tokens were settled when they were committed; None if this is not known of all."""
        if self.unrecorded or not any(wave.settled for wave in self.waves):
            return None
        return [sum(token.settled is True for token in self.tokens(row)) for row in range(len(self.starts))]

    def tokens(self, row: int = 0) -> list[TokenTrace]:
        """A `TokenTrace` for each of a row's new tokens."""
        spent: dict[int, int] = {}
        readouts: dict[int, list[tuple[int, int]]] = {}
        waves = self.of_row(row)
        traced = [TokenTrace(position=self.starts[row], token=self.first_tokens[row])]
        for wave in waves:
            for place, (recurrences, prediction) in enumerate(zip(wave.recurrences, wave.predictions, strict=True)):
                position = wave.start + place
                spent[position] = spent.get(position, 0) + wave.core_passes
                if prediction is not None and not wave.abandoned:
                    readouts.setdefault(position, []).append((recurrences, prediction))
            for place, token in enumerate(wave.committed):
                position = wave.start + place
                traced.append(
                    TokenTrace(
                        position=position + 1,
                        token=token,
                        tick=wave.tick,
                        recurrences=spent[position],
                        exit_value=wave.exit_values[place],
                        settled=wave.settled[place] if wave.settled and token == wave.predictions[place] else None,
                        readouts=readouts[position],
                    )
                )
        return traced

    def to_dict(self) -> dict[str, Any]:
        """Everything but latents, as plain JSON values."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "waves"}
        return values | {"waves": [{name: getattr(wave, name) for name in WAVE_FIELDS} for wave in self.waves]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Trace:
        """A trace equal to the one `to_dict()` was called on, without latents.

        Raises:
            TypeError: `values` or one of its waves is not a dict.
            ValueError: keys are unknown or missing, or the lists of a wave differ in length.
        """
        _check_keys(cls, values, {each.name for each in dataclasses.fields(cls)}, {"sampler", "budget"})
        waves = values.get("waves", [])
        for wave in waves:
            _check_keys(WaveTick, wave, set(WAVE_FIELDS), set(WAVE_FIELDS[:8]))
            per_position = ("tokens", "recurrences", "predictions", "exit_values")
            if len({len(wave[name]) for name in per_position} | {len(wave.get("settled") or wave["tokens"])}) > 1:
                raise ValueError(
                    f"The wave of row {wave['row']} in tick {wave['tick']} has lists of different lengths."
                )
        return cls(**values | {"waves": [WaveTick(**wave) for wave in waves]})

    def save(self, path: str | os.PathLike) -> None:
        """Write `to_dict()` as a JSON file."""
        write_file(path, json.dumps(self.to_dict(), allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> Trace:
        """Read a file that `save` wrote; anything else is a TypeError or ValueError that names the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path} is not a trace: {error}") from error


WAVE_FIELDS = tuple(each.name for each in dataclasses.fields(WaveTick) if each.name != "latents")


def _check_keys(owner: type, values: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(values, dict):
        raise TypeError(f"{owner.__name__} needs a dict, not {type(values).__name__}.")
    for key in values:
        if key not in known:
            raise ValueError(f"{owner.__name__} has no {key!r}{nearest(str(key), known)}.")
    if missing := sorted(needed - values.keys()):
        raise ValueError(f"{owner.__name__} needs {missing[0]!r}.")
