"""Lossless wavefront: shallow recurrences draft, and only full-depth predictions are committed.

Pipelines over (position x depth) like LoopSpec (arXiv 2609.17184) and Wavefront Decoding (arXiv 2609.23033).
"""

from __future__ import annotations

import time
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import torch

from ..cache import Placement, Slots
from ..settings.speculative_wavefront import SpeculativeWavefrontConfig
from .auto_drafts import AutoDrafts
from .cost_curve import CostCurve, cost_curve
from .draft_choice import Guessing, PromptAgreement, choose_guesses
from .guesses import Guesses
from .position import NEW, Position
from .prompt import PromptReader
from .row import Row
from .sampler import TickingSampler
from .wave import Wave

TRUTH, DRAFT = 0, 1
"""The two readouts whose coda keys and values are kept: at full depth, and the latest shallower one."""


class Said(NamedTuple):
    """What a readout said of a position.

    Attributes:
        place: its index among the positions that were read out.
        token: the token it predicts.
        ahead: what the model's extra-token head guesses to follow that token.
    """

    place: int
    token: int
    ahead: tuple[int, ...] = ()


class SpeculativeWavefront(TickingSampler):
    """`sampler="speculative_wavefront"`: a tick refines every position of the wave by `draft_depth` recurrences.

    After `draft_depth` recurrences a position drafts the next token, which joins the wave, with up to
    `draft_tokens` - 1 guesses of the tokens after it. After `second_draft_depth` it drafts again; if the drafts differ,
    the positions after it start over from the second draft. After all `num_steps` it predicts the true token, which is
    committed; if the draft was wrong, the positions after it start over from the true token. A guess is a draft like
    any other: a readout that says something else drops it (but see `Guesses.preferred`).

    As in autoregression, later positions at recurrence d read only keys and values of recurrence d, so no committed
    token depends on drafts.
    """

    config_class = SpeculativeWavefrontConfig
    is_lossless = True
    readouts = 2
    config: SpeculativeWavefrontConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draft_depth = self.config.draft_depth
        self.second_depth = self.config.second_depth(self.draft_depth)
        self.source = self.config.source()
        self.heads = self.model.decoding_heads
        self.extra = min(self.heads.extra_tokens if self.heads else 0, self.config.most_draft_tokens - 1)
        """How many tokens the model's own head guesses behind a draft."""
        self.curve: CostCurve | None = None
        """What ticks cost, with `draft_tokens="auto"`."""
        self.auto: AutoDrafts | None = None
        """Set once prompts have been read with `draft_depth="auto"`."""
        self.rows: list[Row] = []
        """The rows of the current tick, in the order of their seats."""
        self.states: torch.Tensor | None = None
        self.embeddings: torch.Tensor | None = None
        """[1, n, channels] both, of the last tick's wave."""

    def read(self, rows, first_seat):
        """Read the prompts; with `draft_depth="auto"` also compare shallow readouts with full-depth ones."""
        config = self.config
        watcher = None
        if self.draft_depth == "auto":
            seconds = [config.second_depth(depth) for depth in config.draft_depths]
            watcher = PromptAgreement(self.model, filter(None, config.draft_depths + seconds), config.num_steps)
        reader = PromptReader(self.model, self.cache, config, self.stats, self.device, self.chunk)
        logits = yield from reader.read(rows, first_seat, watcher)
        if watcher is not None or (config.draft_tokens == "auto" and self.curve is None):
            self.curve = cost_curve(self.model, len(rows), self.device)
        if config.most_draft_tokens > 1:
            for row in rows:
                row.guesses = Guesses(self.source, logits.shape[-1], row.call.stopping.eos, self.extra > 0)
        if watcher is not None:
            guessing = watcher.guessing(rows) if config.most_draft_tokens > 1 else Guessing()
            self.auto = AutoDrafts(self.curve, len(rows), config, watcher.shares, guessing, self.stats)
            self._take(self.auto.draft_depth)
        self.cache.start_readout(DRAFT, TRUTH, range(first_seat, first_seat + len(rows)))
        self.stats.draft_depth = self.draft_depth
        return self.first_tokens(rows, logits)

    def _take(self, draft_depth: int) -> None:
        """Make ticks of so many recurrences; every position has a multiple of them."""
        self.draft_depth = self.stats.draft_depth = draft_depth
        self.second_depth = self.config.second_depth(draft_depth)

    def begin(self, row: Row) -> None:
        row.wave = [Position(row.ids[-1])]
        self.stats.waves += 1
        self._guess(row)

    def end(self, row: Row) -> None:
        self._drop(row, 0)

    def tick(self, rows: list[Row]) -> None:
        if self.auto is None:
            self._refine(rows)
            return
        began, length = time.perf_counter(), sum(len(row.ids) for row in rows)
        positions = sum(len(row.wave) for row in rows)
        read = self._refine(rows)
        committed = sum(len(row.ids) for row in rows) - length
        self.auto.add(time.perf_counter() - began, len(rows), positions, read, committed)
        wanted = self.auto.wanted.draft_depth
        # Otherwise a position would step past `num_steps`.
        if wanted != self.draft_depth and not any(each.steps % wanted for row in rows for each in row.wave):
            self.auto.take()
            self._take(wanted)

    def _refine(self, rows: list[Row]) -> int:
        """Run a tick; returns how many positions were read out."""
        model, depth, last = self.model, self.draft_depth, self.config.num_steps
        self.rows = rows
        # Newest first: the slots of neighbours then rise by a constant step, so a strided view of the cache has them.
        wave = Wave(rows, self.device, [list(enumerate(row.wave))[::-1] for row in rows])
        positions = [position for members in wave.members for _, position in members]
        readouts = {depth, self.second_depth or depth, last}
        read = [index for index, position in enumerate(positions) if position.steps + depth in readouts]

        # 1. New positions go through the prelude. 2. They start from noise; the others keep their states.
        entering, state, e = wave.new, None, None
        if entering:
            # With a single row, its newest position is the last before the extent.
            there = self._place(wave, entering, wave.extents[0] - 1 if len(wave.rows) == len(entering) == 1 else None)
            e = model.embed(wave.take(wave.ids, entering), there)
            state = model.initialize_state(e, there.positions, wave.take(wave.seeds, entering), self.config.state_scale)
        state, e = wave.carry(self.states, state), wave.carry(self.embeddings, e)

        # 3. The core, each position at its own depth.
        at = self._place(wave, None)
        for inner in range(depth):
            state = model.recur(state, e, at, inner)
        self.states, self.embeddings = state, e
        wave.settle()

        # 4. Read out the positions that are due. 5. The tick's only wait for the device: predictions, and finiteness.
        said, logits, scores = {}, None, None
        if read:
            predictions, ahead, logits, scores = self._read_out(wave, positions, read)
            is_finite = state.isfinite().all(-1)[0]
            facts = torch.cat((predictions, *ahead, is_finite.to(predictions))).tolist()
            facts, flags = facts[: -len(wave)], facts[-len(wave) :]
            for row, own in zip(rows, wave.split(flags), strict=True):
                row.is_finite &= all(own)
            said = {
                positions[index]: Said(place, facts[place], tuple(facts[place + len(read) :: len(read)]))
                for place, index in enumerate(read)
            }
        self._observe(wave, state, said)
        self.stats.ticks += 1
        self.stats.core_passes += depth
        self.stats.positions_refined += depth * len(wave)
        for position in positions:
            position.steps += depth

        # 6. Commit full-depth predictions. 7. Add shallow ones as drafts; positions after a wrong draft start over.
        # 8. Guesses of the tokens after the newest draft enter with it.
        for row in rows:
            self._advance(row, said, logits, scores)
            self._guess(row)
        self.record()
        return len(read)

    def _place(self, wave: Wave, index: list[int] | None, start: int | None = None) -> Placement:
        """The placement of the positions in `index`; None is all of them, each at its own depth."""
        if index is None:
            depths = tuple(position.steps for members in wave.members for _, position in members)
            slots = Slots(depths, wave.steps[0], self.draft_depth)
            at = self.cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extents, depth=slots)
            at.ids = wave.ids
            return at
        chosen = set(index)
        widths = [sum(cell in chosen for cell in cells) for cells in wave.split(list(range(len(wave))))]
        positions, seats = wave.take(wave.positions, index), wave.take(wave.seats, index)
        at = self.cache.place_rows(positions, seats, widths, wave.extents, start)
        at.ids = wave.take(wave.ids, index)
        return at

    def _read_out(self, wave: Wave, positions: list[Position], read: list[int]):
        """The tokens some positions predict, int64 [read], a list of guesses of those after them, as many each, and
        logits and scores, [read, vocabulary] each."""
        last, depth = self.config.num_steps, self.draft_depth
        states = wave.take(self.states, read)
        there = self._place(wave, read)
        timelines = [TRUTH if positions[index].steps + depth == last else DRAFT for index in read]
        readout = Slots(tuple(timelines), torch.tensor(timelines, device=there.positions.device))
        logits = self.model.decode(self._corrected(wave, states, read), there, readout)
        predictions, scores = wave.choose(logits, read)
        ahead = []
        if self.extra:
            choose = partial(wave.guess, read)
            ahead = self.heads.ahead(self.model, states, predictions, self.extra, choose)
        finished = [index for index, timeline in zip(read, timelines, strict=True) if timeline == TRUTH]
        if finished and self.cache.core_slots > last:
            # The cache has more slots than recurrences: copy the last entry to the deeper ones, as after a prompt.
            self.cache.settle(self._place(wave, finished), last)
        return predictions[0], [tokens[0] for tokens in ahead], logits[0], scores[0]

    def _corrected(self, wave: Wave, states: torch.Tensor, read: list[int]) -> torch.Tensor:
        """The states [1, read, channels] that the coda reads: those of drafts by the fitted readout of their depth."""
        for depth in {self.draft_depth, self.second_depth} if self.heads else ():
            if depth in self.heads.readout_depths:
                is_draft = (wave.take(wave.steps, read) + self.draft_depth == depth)[..., None]
                states = torch.where(is_draft.to(states.device), self.heads.corrected(states, depth), states)
        return states

    def _observe(self, wave: Wave, states: torch.Tensor, said: dict[Position, Said]) -> None:
        """Record what the tick did to every row, before anything is committed or dropped."""
        if self.recorder is None:
            return
        latents, begin = self.recorder.latents(states), 0
        for row, width in zip(wave.rows, wave.widths, strict=True):
            self.recorder.observe(
                row,
                self.stats.ticks + 1,
                self.draft_depth,
                [position.steps + self.draft_depth for position in row.wave],
                [said[position].token if position in said else None for position in row.wave],
                # The wave is newest first on the device, but front first in a trace.
                latents=None if latents is None else latents[begin : begin + width].flip(0),
            )
            begin += width

    def _advance(self, row: Row, said: dict[Position, Said], logits, scores) -> None:
        """Apply this tick's readouts to a row: full depth first, then second drafts, then first drafts."""
        for position in [position for position in row.wave if position in said]:
            if position not in row.wave:
                continue  # an earlier position dropped it
            index, predicted, ahead = said[position]
            if position.steps < self.config.num_steps:
                self._propose(row, position, said[position])
                continue
            token = row.commit(predicted, logits[index], scores[index])
            self.stats.count_proposals(position, token)
            if row.guesses is not None:
                row.guesses.learn(position, token)
            del row.wave[0]
            if row.has_ended or not row.wave or row.wave[0].token != token:
                self._drop(row, 0)
                if not row.has_ended:
                    # The committed token is the new front; its draft was wrong or missing.
                    self.stats.waves += 1
                    row.wave.append(Position(token, ahead=ahead if token == predicted else ()))
                return

    def _propose(self, row: Row, position: Position, said: Said) -> None:
        """Add a shallow readout's prediction as the next draft, unless that is the draft already."""
        token = said.token
        position.proposals[position.steps] = token
        if row.guesses is not None:
            token = row.guesses.preferred(position, token)
        place = row.wave.index(position)
        if place + 1 < len(row.wave) and row.wave[place + 1].token == token:
            return
        self._drop(row, place + 1)
        if token not in row.call.stopping.eos and place + 1 < row.room:
            row.wave.append(Position(token, ahead=said.ahead if token == said.token else ()))

    def _guess(self, row: Row) -> None:
        """Add guesses of the tokens after the newest draft, if it enters in the next tick."""
        if row.guesses is None or row.has_ended or not row.wave or row.wave[-1].cell != NEW:
            return
        count = min(self.config.most_draft_tokens - 1, row.room - len(row.wave))
        if count < 1:
            return
        # One more than may enter: it competes with the readout of the last that enters.
        guesses = row.guesses.propose(
            row.ids + [position.token for position in row.wave[1:]], count + 1, row.wave[-1].ahead
        )
        chances = [row.guesses.rates[source] for source, _ in guesses[:count]]
        if self.auto is not None:
            count = self.auto.guesses(chances)
        elif self.config.draft_tokens == "auto":
            count = choose_guesses(self.curve, chances, self.config.num_steps, self.draft_depth)
        for index, guess in enumerate(guesses[: count + 1]):
            row.wave[-1].guess = guess
            if index < count:
                row.wave.append(Position(guess[1]))

    def _drop(self, row: Row, place: int) -> None:
        """Drop a row's positions from `place` on and count their recurrences as wasted."""
        spent = [position.steps for position in row.wave[place:]]
        if row.guesses is not None:
            # The front is the last of the ids. A guess that no readout has confirmed is not worth keeping.
            read = zip(row.wave[max(place - 1, 0) :], row.wave[place:], strict=False)
            kept = [after.token for before, after in takewhile(lambda pair: pair[0].proposals, read)]
            row.guesses.keep(len(row.ids) - 1 + place, kept)
        del row.wave[place:]
        self.stats.wasted_recurrences += sum(spent)
        if self.recorder is not None and row in self.recorder.observed:
            # Positions added in this tick have had no recurrences.
            self.recorder.observed[row].discarded += [recurrences for recurrences in spent if recurrences]
        if spent and not row.is_finite and row in self.rows:
            self.cache.scrub(self.rows.index(row))
