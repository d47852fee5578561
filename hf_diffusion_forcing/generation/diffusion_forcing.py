"""Diffusion forcing: refine a wave of positions, freeze those that have converged (arXiv 2510.14961, section 4)."""

import time
from collections.abc import Sequence
from functools import partial
from itertools import zip_longest

import torch

from ..hooks.latent_criteria import LatentDifferenceCriterion
from ..hooks.refinement import Refinement
from ..settings.diffusion_forcing import DiffusionForcingConfig
from .auto_wave import AutoWave, Way
from .cost_curve import cost_curve
from .freezing import frozen_prefix
from .front import FrontSampler
from .guesses import Guesses
from .position import Position
from .row import Row
from .wave import Wave
from .wave_choice import PromptDepth


class DiffusionForcing(FrontSampler):
    """`sampler="diffusion_forcing"`: ticks of `inner_recurrence` core passes over the wave.

    With `wavefront="auto"`, ticks may also refine the fronts alone, as those of `sampler="adaptive"` do.
    """

    config_class = DiffusionForcingConfig
    needs_injected_embedding = True
    config: DiffusionForcingConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processors = self.config.processors()
        self.source = self.config.source()
        self.heads = self.model.decoding_heads
        self.extra = min(self.heads.extra_tokens if self.heads else 0, self.config.draft_tokens - 1)
        """How many tokens the model's own head guesses behind a prediction."""
        self.wavefront, self.inner_recurrence = self.config.wavefront, self.config.inner_recurrence
        self.auto: AutoWave | None = None
        """Set once prompts have been read with `wavefront="auto"`."""
        if self.recorder is not None:
            self.recorder.trace.budget = self.config.max_steps

    def read(self, rows, first_seat):
        """Read the prompts; with `wavefront="auto"` also measure how many recurrences they need."""
        is_auto = self.config.wavefront == "auto"
        is_latent = getattr(self.criterion, "name", None) == LatentDifferenceCriterion.name
        watcher = PromptDepth(*[self.criterion.threshold] if is_latent else []) if is_auto else None
        first = yield from super().read(rows, first_seat, watcher)
        if watcher is not None:
            self.auto = AutoWave(
                cost_curve(self.model, len(rows), self.device),
                len(rows),
                watcher.recurrences,
                self.config.max_steps,
                self.config.inner_recurrence,
                not self.processors,
                self.criterion.needs_logits,
                self.stats,
            )
            self._take(self.auto.way)
        self.stats.wavefront, self.stats.inner_recurrence = self.wavefront, self.inner_recurrence
        if self.config.draft_tokens > 1:
            for row in rows:
                row.guesses = Guesses(self.source, first[1].shape[-1], row.call.stopping.eos, self.extra > 0)
        return first

    def _take(self, way: Way) -> None:
        """Make ticks as `AutoWave` chose; those that refine the fronts alone are waves of 1 with 1 recurrence."""
        self.wavefront, self.inner_recurrence = way or (1, 1)
        self.stats.wavefront, self.stats.inner_recurrence = self.wavefront, self.inner_recurrence

    def begin(self, row: Row) -> None:
        """The first wave: the first token, guesses of the next ones, and drafts that repeat the last of them."""
        row.wave = [Position(row.ids[-1])]
        self._advance(row, 1, row.ids[-1:], 0)
        self.at = None

    def _advance(
        self, row: Row, frozen: int, predictions: list[int], recurrences: int, ahead: Sequence[list[int]] = ()
    ) -> None:
        """Advance the wave of a row.

        Where a draft has changed, all later predictions were made behind a wrong token: guesses replace them as far as
        they reach, and `draft_tokens` - 1 positions at most stay there. Without a change, guesses follow the last
        prediction.

        Args:
            frozen, predictions, recurrences: as in `Row.advance`.
            ahead: what the model's own head guesses to follow each prediction, a list for each distance.
        """
        kept, headway, most = row.wave[frozen:], self.config.headway, min(self.wavefront, row.room)
        if row.guesses is None:
            row.advance(frozen, predictions, min(len(kept) + headway, most), recurrences)
            return
        drafts = [row.wave[0].token, *predictions][frozen:]
        changed = [place for place, position in enumerate(kept) if position.token != drafts[place]]
        newest = min([*changed, len(kept)])
        replaced, room = frozen + newest, min(self.config.draft_tokens, most - newest) - 1
        follow = [told[replaced - 1] for told in ahead]
        # Without left padding: a guess may change the text, which must not depend on the batch.
        text = row.ids[max(-row.shift, 0) :] + drafts[1 : newest + 1]
        guesses = row.guesses.propose(text, room, follow) if room > 0 else []
        tokens = [token for _, token in guesses]
        predictions = predictions[:replaced] + tokens + predictions[replaced + len(tokens) :]
        behind = min(len(kept) + headway, newest + max(self.config.draft_tokens, headway))
        width = min(max(newest + 1 + len(guesses), behind), most)
        row.advance(frozen, predictions, width, recurrences)
        for position, guess in zip_longest(row.wave[newest:], guesses):
            position.guess = guess

    def tick(self, rows: list[Row]) -> None:
        if self.auto is None:
            self._refine(rows, self.inner_recurrence)
            return
        began, length = time.perf_counter(), sum(len(row.ids) for row in rows)
        positions, recurrences = sum(len(row.wave) for row in rows), 1
        if self.auto.way is None:
            unsettled = self.tick_fronts(rows, self.config.max_steps)
        else:
            # With another r' than before, a front may have less of its budget left than one tick of it.
            left = min(self.config.max_steps - row.wave[0].steps for row in rows)
            recurrences = max(1, min(self.inner_recurrence, left))
            unsettled = self._refine(rows, recurrences)
        committed = sum(len(row.ids) for row in rows) - length
        seconds = time.perf_counter() - began
        if self.auto.add(seconds, len(rows), positions, recurrences, committed, unsettled):
            self._take(self.auto.way)
            self.at = None
            for row in rows:
                row.wave = row.wave[: self.wavefront]

    def _refine(self, rows: list[Row], recurrences: int) -> int:
        """Run a tick of `recurrences` core passes over the waves; returns how many positions have not converged."""
        model, cache, config, hooks = self.model, self.cache, self.config, self.processors
        wave = Wave(rows, self.device)
        # With shared keys and values all recurrences write one slot; otherwise each position has its own depth.
        depth = 0 if cache.kv_sharing == "last" else wave.steps
        at = cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extents, wave.start, depth=depth)
        refinement = self.refinement(wave, recurrences, config.max_steps)

        # 1. The prelude reads the drafts; momentum mixes in the last tick's embeddings.
        e = hooks.process_embedding(model.embed(wave.ids, at), refinement)

        # 2. Old positions keep their states, new ones get their own; noise may be mixed into all.
        state = wave.carry(self.states, self.starts.take(wave, e, self.states))
        refinement.before = refinement.states = state = hooks.process_start(state, refinement)
        state = hooks.process_state(state, refinement)

        # 3. Run the core r' times.
        for inner in range(recurrences):
            state = model.recur(state, e, at, inner)
        refinement.before = refinement.before.to(state.device)  # the core may be on another device
        refinement.states = state = hooks.process_refined(state, refinement)

        # 4. Read out what every position predicts.
        refinement.logits = logits = model.decode(state, at)
        refinement.predictions, scores = wave.choose(logits)
        ahead = self._ahead(wave, refinement)

        # 5. Decide which positions have converged. This is the tick's only wait for the device.
        is_finite = state.isfinite().all(-1) & logits[..., 0].isfinite()
        converged = self.has_converged(refinement)
        traced = self.traced(refinement)
        facts = (refinement.predictions, converged, is_finite, *ahead, *traced.values())
        facts = [fact[0].to(refinement.predictions.device, torch.long) for fact in facts]
        predictions, converged, is_finite, *values = map(wave.split, torch.stack(facts).tolist())
        self.observe(wave, state, recurrences, predictions, dict(zip(traced, values[len(ahead) :], strict=True)))
        self.count(wave, recurrences)
        unsettled = sum(flags.count(0) for flags in converged)
        if self._has_narrowed(rows, is_finite):
            return unsettled
        self.states, self.memory = state, refinement.remembered
        wave.settle()

        # 6. and 7. Commit the longest converged prefix and advance the wave.
        logits, scores = logits[0].split(wave.widths), scores[0].split(wave.widths)
        for seat, row in enumerate(rows):
            follow = [tokens[seat] for tokens in values[: len(ahead)]]
            self._freeze(row, predictions[seat], converged[seat], logits[seat], scores[seat], recurrences, follow)
        self.record()
        return unsettled

    def _ahead(self, wave: Wave, refinement: Refinement) -> list[torch.Tensor]:
        """What the model's own head guesses to follow each prediction, int64 [1, n] for each distance."""
        if not self.extra:
            return []
        choose = partial(wave.guess, list(range(len(wave))))
        return self.heads.ahead(self.model, refinement.states, refinement.predictions, self.extra, choose)

    def _freeze(
        self,
        row: Row,
        predictions: list[int],
        converged: list[int],
        logits: torch.Tensor,
        scores: torch.Tensor,
        recurrences: int,
        ahead: list[list[int]],
    ) -> None:
        """Commit the predictions of the row's frozen prefix, checking every stop, and advance the wave."""
        wave = row.wave
        frozen = frozen_prefix(
            [position.token for position in wave],
            predictions,
            converged,
            [position.steps for position in wave],
            recurrences,
            self.config.max_steps,
        )
        for place in range(frozen):
            token = row.commit(predictions[place], logits[place], scores[place])
            if row.guesses is not None:
                self.stats.count_proposals(wave[place], token)
                row.guesses.learn(wave[place], token)
            if row.has_ended:
                return
            if token != predictions[place]:
                # A processor that keeps a state has chosen another token: the draft after it was wrong.
                predictions[place], frozen, ahead = token, place + 1, []
                break
        self._advance(row, frozen, predictions, recurrences, ahead)

    def _has_narrowed(self, rows: list[Row], is_finite: list[list[int]]) -> bool:
        """Whether a draft has overflowed. The tick is then discarded and repeated with only the fronts of such rows.

        Through 0 * NaN in attention such a draft also spoils the positions on its left. If a row's front is not finite
        on its own, the model itself is to blame, and narrowing that row does not help.
        """
        has_narrowed = False
        for seat, (row, flags) in enumerate(zip(rows, is_finite, strict=True)):
            if not row.can_narrow or all(flags):
                continue
            if len(flags) == 1:
                row.can_narrow = False
            elif not all(flags[1:]):
                row.wave = row.wave[:1]
                # Attention may still read past the front, up to the longest row's extent or the rounded one.
                self.cache.scrub(seat)
                has_narrowed = True
        if has_narrowed:
            self.record(abandoned=True)
        return has_narrowed
