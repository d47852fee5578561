"""Lossless wavefront: drafts from shallow recurrences, every committed token the full-depth model's own.

The pipeline over (position x depth) is that of LoopSpec (arXiv 2609.17184) and Wavefront Decoding (arXiv 2609.23033).
"""

import torch

from ..settings.speculative_wavefront import SpeculativeWavefrontConfig
from .cost_model import PromptAgreement, choose_draft_depth, cost_curve
from .depth_wave import DepthWave
from .sampler import WavefrontSampler
from .trace import WaveTick

TRUTH, DRAFT = 0, 1
"""The two timelines of the coda's keys and values: of full-depth readouts, and of the latest shallower ones."""


class SpeculativeWavefront(WavefrontSampler):
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
        self.sound = True
        """Whether every state so far was finite."""
        self.observed: dict[int, WaveTick] = {}
        """What the running tick did, by row of the wave; empty without a trace."""

    def prefill(self) -> DepthWave:
        """The prompt's pass; for `draft_depth="auto"` it also shows how often shallow readouts agree with the last."""
        config = self.config
        if config.draft_depth == "auto":
            shortest = self.committed.prompt_length - max(self.padding) + self.offset
            agreement = PromptAgreement(
                self.model, self.cache, config.draft_depths, config.num_steps, min(64, shortest)
            )
            wave = super().prefill(agreement)
            curve = cost_curve(self.model, len(self.live), self.input_ids.device)
            self.draft_depth = choose_draft_depth(curve, agreement.shares, config.num_steps)
            self.second_depth = config.second_depth(self.draft_depth)
        else:
            wave = super().prefill()
        self.cache.start_readout(DRAFT, TRUTH)
        self.stats.draft_depth = self.draft_depth
        self.stats.waves = sum(map(bool, wave.tokens))
        return wave

    def begin(self, fronts: list[int], tokens: list[int | None], device: torch.device) -> DepthWave:
        rows = enumerate(zip(fronts, tokens, strict=True))
        begun = [[token] if token is not None and self.has_room(row, front) else [] for row, (front, token) in rows]
        return DepthWave(fronts, begun, device)

    def tick(self, wave: DepthWave) -> None:
        """Every position `draft_depth` recurrences deeper; then drafts, second proposals and truths are read out."""
        model, cache, config, depth = self.model, self.cache, self.config, self.draft_depth
        span = wave.span
        ids, positions = wave.grid(span)
        read = [column for column in self._readouts if column in span]
        # Before there is work on the device, which this copy would wait for.
        columns = torch.tensor([column - span.start for column in read], device=positions.device, dtype=torch.long)
        one_row = len(wave.tokens) == 1
        s = e = None
        if span.start == 0:
            entering = positions[:, :1]
            cache.place(entering, start=wave.extent - 1 if one_row else None, extent=wave.extent)
            e = model.embed(ids[:, :1], entering, cache)
            s = model.initialize_state(e, entering, self.seeds, self.config.state_scale)
        cache.place(positions, extent=wave.extent)
        states, embeddings = wave.carry(span, s, e)
        first, last = depth * span.start, depth * span.stop
        for inner in range(depth):
            states = model.recur(states, embeddings, positions, cache, range(first + inner, last, depth))
        wave.states, wave.embeddings, wave.held = states, embeddings, span

        readouts = tuple(TRUTH if depth * (column + 1) == self.config.num_steps else DRAFT for column in read)
        predictions, logits, scores = [[] for _ in wave.tokens], None, None
        if read:
            where = positions[:, columns]
            cache.place(where, extent=wave.extent)
            logits = model.decode(states[:, columns.to(states.device)], where, cache, readouts)
            chosen, scores = self.choice(
                logits, ids[:, columns], where, self._lengths(wave, read), self.finals, self.live
            )
            # The tick's only wait for the device: what was predicted, and whether all states are well.
            *chosen, sound = torch.cat((chosen.flatten(), states.isfinite().all()[None].to(chosen))).tolist()
            predictions = [chosen[row * len(read) : (row + 1) * len(read)] for row in range(len(wave.tokens))]
            self.sound &= bool(sound)
            if read[-1] == config.num_steps // depth - 1 and cache.core_slots > config.num_steps:
                # A cache with more slots than recurrences: deeper ones hold the last there has been, as after a prompt.
                cache.place(where[:, -1:], extent=wave.extent)
                cache.settle(config.num_steps)

        if self.trace is not None:
            self._observe_wave(wave, read, predictions)
        self.stats.ticks += 1
        self.stats.core_passes += depth
        self.stats.positions_refined += depth * sum(map(len, wave.tokens))
        for row, tokens in enumerate(wave.tokens):
            if tokens:
                self._advance(wave, row, read, predictions[row], logits, scores)
        wave.move()
        self.record(list(self.observed.values()))

    def _observe_wave(self, wave: DepthWave, read: list[int], predictions: list[list[int]]) -> None:
        """Note what the tick did to every row, before it is known what becomes of it."""
        depth = self.draft_depth
        states = wave.states.to("cpu", torch.float32) if self.keeps_latents else None
        self.observed = {}
        for row, tokens in enumerate(wave.tokens):
            if tokens:
                columns = wave.columns[row]
                said = dict(zip(read, predictions[row], strict=False))
                self.observed[row] = self.observe(
                    row,
                    wave.fronts[row],
                    depth,
                    list(tokens),
                    [depth * (column + 1) for column in columns],
                    [said.get(column) for column in columns],
                    latents=None if states is None else states[row, [column - wave.held.start for column in columns]],
                )

    @property
    def _readouts(self) -> list[int]:
        """The columns that are read out at a tick's end: first drafts, second proposals, truths."""
        config, depth = self.config, self.draft_depth
        depths = {depth, self.second_depth or depth, config.num_steps}
        return [each // depth - 1 for each in sorted(depths)]

    def _lengths(self, wave: DepthWave, read: list[int]) -> list[list[int]]:
        """Per live row, the length of each read position's prefix; 0 where the row has no such position."""
        lengths = []
        for row in range(len(wave.tokens)):
            front = len(self.committed.rows[self.live[row]])
            places = [wave.place_of(row, column) for column in read]
            lengths.append([0 if place is None else front + place for place in places])
        return lengths

    def _advance(self, wave: DepthWave, row: int, read: list[int], predictions: list[int], logits, scores) -> None:
        """What the readouts of this tick mean for a row: the truth first, then second proposals, then drafts."""
        depth, tokens, proposals = self.draft_depth, wave.tokens[row], wave.proposals[row]
        for index, column in reversed(list(enumerate(read))):
            place, token = wave.place_of(row, column), predictions[index]
            if place is None:
                continue
            recurrences = depth * (column + 1)
            if recurrences < self.config.num_steps:
                proposals[place][recurrences] = token
                if tokens[place + 1 : place + 2] != [token]:
                    self._drop(wave, row, place + 1)
                    if token not in self.committed.eos and self.has_room(row, wave.fronts[row] + place + 1):
                        wave.enter(row, token)
                continue
            ended = self.committed.commit(self.live[row], token, logits[row, index], scores[row, index])
            self.stats.count_proposals(proposals[0], token)
            right = not ended and tokens[1:2] == [token]
            if not right:
                self._drop(wave, row, 1)
            wave.drop_front(row)
            if not right and not ended:
                # What has just been committed is the front now; a wrong draft stood in its place, or none.
                self.stats.waves += 1
                wave.enter(row, token)
            if not right:
                return

    def end_row(self, wave: DepthWave, row: int) -> None:
        self._drop(wave, row, 0)

    def _drop(self, wave: DepthWave, row: int, place: int) -> None:
        """Drop a row's positions from `place` on, and count what was spent on them."""
        dropped = wave.cut(row, place)
        spent = [self.draft_depth * (column + 1) for column in dropped]
        self.stats.wasted_recurrences += sum(spent)
        if row in self.observed:
            # What entered in this very tick has had none.
            self.observed[row].discarded += [recurrences for recurrences in spent if recurrences]
        if dropped and not self.sound:
            self.cache.scrub(row)
