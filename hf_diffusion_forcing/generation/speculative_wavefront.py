"""Lossless wavefront: drafts from shallow recurrences, every committed token the full-depth model's own.

The pipeline over (position x depth) is that of LoopSpec (arXiv 2609.17184) and Wavefront Decoding (arXiv 2609.23033).
"""

from __future__ import annotations

import torch

from ..cache import Placement, Slots
from ..settings.speculative_wavefront import SpeculativeWavefrontConfig
from .cost_curve import cost_curve
from .draft_choice import PromptAgreement, choose_draft_depth
from .prompt import PromptReader
from .row import Position, Row
from .sampler import TickingSampler
from .wave import Wave

TRUTH, DRAFT = 0, 1
"""The two timelines of the coda's keys and values: of full-depth readouts, and of the latest shallower ones."""


class SpeculativeWavefront(TickingSampler):
    """`sampler="speculative_wavefront"`: a tick takes every position of the wave `draft_depth` recurrences deeper.

    A position that has had `draft_depth` recurrences drafts the next token, which enters behind it. One that has had
    `second_draft_depth` proposes again; where it disagrees, what stands behind it starts anew from the second
    proposal. One that has had all `num_steps` says what the token really is: it is committed, and if the draft was
    another, what stands behind starts anew from the truth. A position's keys and values of recurrence d are read by
    later positions at recurrence d alone, as in autoregression, so no committed token depends on how drafts fared.
    """

    config_class = SpeculativeWavefrontConfig
    is_lossless = True
    config: SpeculativeWavefrontConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.draft_depth = self.config.draft_depth
        self.second_depth = self.config.second_depth(self.draft_depth)
        self.is_finite = True
        """Whether every state so far was finite."""
        self.rows: list[Row] = []
        """Those of the running tick, in the order of their seats."""
        self.states: torch.Tensor | None = None
        self.embeddings: torch.Tensor | None = None
        """[1, n, channels] both, of the last tick's wave."""

    def read(self, rows, first_seat):
        """The prompts; for `draft_depth="auto"` they also show how often shallow readouts agree with the last."""
        config = self.config
        is_auto = self.draft_depth == "auto"
        watcher = PromptAgreement(self.model, config.draft_depths, config.num_steps) if is_auto else None
        reader = PromptReader(self.model, self.cache, config, self.stats, self.device, self.chunk)
        logits = reader.read(rows, first_seat, watcher)
        if watcher is not None:
            curve = cost_curve(self.model, len(rows), self.device)
            self.draft_depth = choose_draft_depth(curve, watcher.shares, config.num_steps)
            self.second_depth = config.second_depth(self.draft_depth)
        self.cache.start_readout(DRAFT, TRUTH, range(first_seat, first_seat + len(rows)))
        self.stats.draft_depth = self.draft_depth
        return self.first_tokens(rows, logits)

    def begin(self, row: Row) -> None:
        row.wave = [Position(row.ids[-1])]
        self.stats.waves += 1

    def end(self, row: Row) -> None:
        self._drop(row, 0)

    def tick(self, rows: list[Row]) -> None:
        model, depth, last = self.model, self.draft_depth, self.config.num_steps
        self.rows = rows
        # The newest first: the slots of neighbours rise by one stride then, and a view of the cache holds them all.
        wave = Wave(rows, self.device, [list(enumerate(row.wave))[::-1] for row in rows])
        positions = [position for members in wave.members for _, position in members]
        readouts = {depth, self.second_depth or depth, last}
        read = [index for index, position in enumerate(positions) if position.steps + depth in readouts]

        # 1. Positions that enter go through the prelude. 2. They start from noise; the others go on.
        entering, state, e = wave.new, None, None
        if entering:
            # The newest position of a row that is alone stands right before the extent.
            there = self._place(wave, entering, wave.extent - 1 if len(wave.rows) == len(entering) == 1 else None)
            e = model.embed(wave.take(wave.ids, entering), there)
            state = model.initialize_state(e, there.positions, wave.take(wave.seeds, entering), self.config.state_scale)
        state, e = wave.carry(self.states, state), wave.carry(self.embeddings, e)

        # 3. The core, each position at its own depth.
        at = self._place(wave, None)
        for inner in range(depth):
            state = model.recur(state, e, at, inner)
        self.states, self.embeddings = state, e
        wave.settle()

        # 4. What the positions that are due say. 5. The one wait for the device: that, and whether all is finite.
        said, logits, scores = {}, None, None
        if read:
            predictions, logits, scores = self._read_out(wave, positions, read)
            *predictions, is_finite = torch.cat((predictions, state.isfinite().all()[None].to(predictions))).tolist()
            self.is_finite &= bool(is_finite)
            said = {positions[index]: (place, predictions[place]) for place, index in enumerate(read)}
        self._observe(wave, state, said)
        self.stats.ticks += 1
        self.stats.core_passes += depth
        self.stats.positions_refined += depth * len(wave)
        for position in positions:
            position.steps += depth

        # 6. Truths are committed. 7. Proposals enter as drafts; what stands behind a wrong one starts anew.
        for row in rows:
            self._advance(row, said, logits, scores)
        self.record()

    def _place(self, wave: Wave, index: list[int] | None, start: int | None = None) -> Placement:
        """The placement of some of the wave's positions, or of all, each at its own depth, when `index` is None."""
        if index is None:
            depths = tuple(position.steps for members in wave.members for _, position in members)
            slots = Slots(depths, wave.steps[0])
            return self.cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extent, depth=slots)
        chosen = set(index)
        widths = [sum(cell in chosen for cell in cells) for cells in wave.split(list(range(len(wave))))]
        positions, seats = wave.take(wave.positions, index), wave.take(wave.seats, index)
        return self.cache.place_rows(positions, seats, widths, wave.extent, start)

    def _read_out(self, wave: Wave, positions: list[Position], read: list[int]):
        """What some positions predict, int64 [read], with the logits and scores, [read, vocabulary] each."""
        last, depth = self.config.num_steps, self.draft_depth
        there = self._place(wave, read)
        timelines = [TRUTH if positions[index].steps + depth == last else DRAFT for index in read]
        readout = Slots(tuple(timelines), torch.tensor(timelines, device=there.positions.device))
        logits = self.model.decode(wave.take(self.states, read), there, readout)
        predictions, scores = wave.choose(logits, read)
        finished = [index for index, timeline in zip(read, timelines, strict=True) if timeline == TRUTH]
        if finished and self.cache.core_slots > last:
            # A cache with more slots than recurrences: deeper ones hold the last there has been, as after a prompt.
            self.cache.settle(self._place(wave, finished), last)
        return predictions[0], logits[0], scores[0]

    def _observe(self, wave: Wave, states: torch.Tensor, said: dict[Position, tuple[int, int]]) -> None:
        """Note in the trace what the tick did to every row, before it is known what becomes of it."""
        if self.recorder is None:
            return
        latents, begin = self.recorder.latents(states), 0
        for row, width in zip(wave.rows, wave.widths, strict=True):
            self.recorder.observe(
                row,
                self.stats.ticks + 1,
                self.draft_depth,
                [position.steps + self.draft_depth for position in row.wave],
                [said[position][1] if position in said else None for position in row.wave],
                # The wave stands newest first on the device, front first in a trace.
                latents=None if latents is None else latents[begin : begin + width].flip(0),
            )
            begin += width

    def _advance(self, row: Row, said: dict[Position, tuple[int, int]], logits, scores) -> None:
        """What the readouts of this tick mean for a row: the truth first, then second proposals, then drafts."""
        for position in [position for position in row.wave if position in said]:
            if position not in row.wave:
                continue  # dropped by what stood before it
            index, token = said[position]
            if position.steps < self.config.num_steps:
                self._propose(row, position, token)
                continue
            has_ended = row.commit(token, logits[index], scores[index])
            self.stats.count_proposals(position.proposals, token)
            is_right = not has_ended and len(row.wave) > 1 and row.wave[1].token == token
            if not is_right:
                self._drop(row, 1)
            del row.wave[0]
            if not is_right:
                if not has_ended:
                    # What has just been committed is the front now; a wrong draft stood in its place, or none.
                    self.stats.waves += 1
                    row.wave.append(Position(token))
                return

    def _propose(self, row: Row, position: Position, token: int) -> None:
        """A shallow readout says what the next token may be: it enters, unless it stands there already."""
        position.proposals[position.steps] = token
        place = row.wave.index(position)
        if place + 1 < len(row.wave) and row.wave[place + 1].token == token:
            return
        self._drop(row, place + 1)
        if token not in row.call.stopping.eos and place + 1 < row.room:
            row.wave.append(Position(token))

    def _drop(self, row: Row, place: int) -> None:
        """Drop a row's positions from `place` on, and count what was spent on them."""
        spent = [position.steps for position in row.wave[place:]]
        del row.wave[place:]
        self.stats.wasted_recurrences += sum(spent)
        if self.recorder is not None and row in self.recorder.observed:
            # What entered in this very tick has had none.
            self.recorder.observed[row].discarded += [recurrences for recurrences in spent if recurrences]
        if spent and not self.is_finite:
            self.cache.scrub(self.rows.index(row))
