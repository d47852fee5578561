"""Diffusion forcing: refine a wave of positions, freeze those that have converged (arXiv 2510.14961, section 4)."""

import torch

from ..cache.unpadding import Unpadding
from ..hooks.refinement import Refinement
from ..settings.diffusion_forcing import DiffusionForcingConfig
from .cost_model import PromptDepth, choose_wave, cost_curve
from .early_exit import EarlyExitSampler
from .state_starts import StateStarts
from .wavefront import Wavefront


class DiffusionForcing(EarlyExitSampler):
    """`sampler="diffusion_forcing"`: ticks of `inner_recurrence` core passes over the wave."""

    config_class = DiffusionForcingConfig
    needs_injected_embedding = True
    config: DiffusionForcingConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.processors = self.config.processors()
        self.starts = StateStarts(self.model, self.config.state_scale)
        self.narrows = True
        if self.trace is not None:
            self.trace.budget = self.config.max_steps
        # While the prompt is read an automatic wave is as wide as its first tick.
        automatic = self.config.wavefront == "auto"
        self.wavefront = self.config.headway if automatic else self.config.wavefront
        self.inner_recurrence = self.config.inner_recurrence

    def next_width(self, row: int, front: int, kept: int) -> int:
        """`headway` more than the row keeps, within `wavefront` and the length limit."""
        return min(self.wavefront, kept + self.config.headway, self.last_position(row) - front + 1)

    def prefill(self) -> Wavefront:
        """The prompt's pass; for `wavefront="auto"` it also shows how many recurrences the text needs."""
        config = self.config
        if config.wavefront == "auto":
            shortest = self.committed.prompt_length - max(self.padding) + self.offset
            depth = PromptDepth(columns=min(64, shortest))
            wave = super().prefill(depth)
            curve = cost_curve(self.model, len(self.live), self.input_ids.device)
            self.wavefront, self.inner_recurrence = choose_wave(
                curve, depth.recurrences, config.max_steps, config.inner_recurrence
            )
        else:
            wave = super().prefill()
        self.stats.wavefront, self.stats.inner_recurrence = self.wavefront, self.inner_recurrence
        return wave

    def tick(self, wave: Wavefront) -> None:
        """Refine the wave by `inner_recurrence` core passes, freeze its converged prefix, and move on."""
        model, config, cache, processors = self.model, self.config, self.cache, self.processors
        input_ids, positions, steps, fresh = wave.tensors()
        # Only attention needs the rows: everything else is spared their padding. (Where every position has a depth of
        # its own, attention knows of no unpadding.)
        unpadding = wave.unpadding(positions) if cache.kv_sharing == "last" else Unpadding()
        placed = cache.place(positions, start=wave.start, extent=wave.extent, unpadding=unpadding).positions
        refinement = Refinement(
            positions=positions,
            input_ids=input_ids,
            fresh=fresh,
            steps=steps,
            recurrences=self.inner_recurrence,
            budget=config.max_steps,
            seeds=self.seeds,
            model=model,
            memory=wave.recall(),
        )
        e = model.embed(unpadding.unpad(input_ids), placed, cache)
        e = processors.process_embedding(unpadding.pad(e), refinement)

        start = self.starts.take(wave, e, positions, self.seeds)
        carried = wave.states
        state = processors.process_start(wave.carry(carried, start), refinement)
        refinement.before = refinement.states = state
        state = processors.process_state(state, refinement)
        # With shared keys and values every recurrence writes the same slot; without, each position has its own depth.
        depth = 0 if cache.kv_sharing == "last" else steps
        state, e = unpadding.unpad(state), unpadding.unpad(e)
        for inner in range(self.inner_recurrence):
            state = model.recur(state, e, placed, cache, depth + inner)
        state = unpadding.pad(state)
        refinement.before = refinement.before.to(state.device)  # the core may stand on another device
        wave.states = refinement.states = processors.process_refined(state, refinement)
        logits = model.decode(unpadding.unpad(wave.states), placed, cache)
        refinement.logits = logits = unpadding.pad(logits)
        refinement.predictions, scores = self.choose(wave, logits, input_ids, positions)
        chosen = refinement.predictions
        sound = wave.states.isfinite().all(-1) & logits[..., 0].isfinite()
        facts = (chosen, self.converged(refinement), sound, *self.exit_bits(refinement))
        # The tick's only wait for the device: what was predicted, what has converged, and whether all is well.
        facts = torch.stack([fact.to(chosen.device, torch.long) for fact in facts]).tolist()
        predictions, converged, sound, *bits = facts
        observed = self.observe_wave(wave, self.inner_recurrence, predictions, bits)

        self.stats.ticks += 1
        self.stats.core_passes += self.inner_recurrence
        self.stats.positions_refined += self.inner_recurrence * sum(map(len, wave.tokens))
        if self.narrows and not all(all(flags[1 : len(row)]) for flags, row in zip(sound, wave.tokens, strict=True)):
            # A draft has overflowed, and 0 * NaN in attention carries that to the positions on its left.
            wave.narrow(carried)
            self.record(observed, abandoned=True)
            return self.tick(wave)
        # Alone the front is as finite as the model is. If it is not, narrowing is no help.
        self.narrows &= wave.width > 1 or all(flags[0] for flags, row in zip(sound, wave.tokens, strict=True) if row)
        wave.memory = refinement.remembered
        for row, tokens in enumerate(wave.tokens):
            if tokens:
                self._freeze(wave, row, predictions[row][: len(tokens)], converged[row], logits[row], scores[row])
        self.record(observed)

    def _freeze(self, wave: Wavefront, row: int, predictions: list[int], converged: list[int], logits, scores) -> None:
        """Commit the predictions of a row's longest converged prefix, and advance the row's wave."""
        config = self.config
        tokens, steps = wave.tokens[row], wave.steps[row]
        frozen, ended = 0, False
        while frozen < len(tokens) and not ended:
            # A position whose own input was a wrong draft has converged to the wrong thing.
            if frozen > 0 and tokens[frozen] != predictions[frozen - 1]:
                break
            # No tick may take the front position past its budget.
            exhausted = steps[frozen] + 2 * self.inner_recurrence > config.max_steps
            if not (converged[frozen] or exhausted):
                break
            ended = self.committed.commit(self.live[row], predictions[frozen], logits[frozen], scores[frozen])
            frozen += 1
        width = 0 if ended else self.next_width(row, wave.fronts[row] + frozen, len(tokens) - frozen)
        wave.advance(row, frozen, predictions, width, self.inner_recurrence)
