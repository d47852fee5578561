"""Diffusion forcing: refine a wave of positions, freeze those that have converged (arXiv 2510.14961, section 4)."""

import torch

from ..configuration import DiffusionForcingConfig
from ..refinement import Refinement
from .sampler import WavefrontSampler
from .wavefront import Wavefront


class DiffusionForcing(WavefrontSampler):
    """`sampler="diffusion_forcing"`: ticks of `inner_recurrence` core passes over the wave."""

    config: DiffusionForcingConfig

    def next_width(self, row: int, front: int, kept: int) -> int:
        """`headway` more than the row keeps, within `wavefront` and the length limit."""
        return min(self.config.wavefront, kept + self.config.headway, self.last_position(row) - front + 1)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.criterion, self.processors = self.config.criterion(), self.config.processors()

    def tick(self, wave: Wavefront) -> None:
        """Refine the wave by `inner_recurrence` core passes, freeze its converged prefix, and move on."""
        model, config, cache, processors = self.model, self.config, self.cache, self.processors
        input_ids, positions = wave.input_ids(), wave.positions()
        cache.place(positions, start=wave.start, extent=wave.extent)
        refinement = Refinement(
            positions=positions,
            input_ids=input_ids,
            fresh=wave.fresh(),
            steps=wave.step_counts(),
            recurrences=config.inner_recurrence,
            budget=config.max_steps,
            seeds=self.seeds,
            model=model,
            memory=wave.recall(),
        )
        e = processors.process_embedding(model.embed(input_ids, positions, cache), refinement)

        first = wave.first_fresh
        start = e[:, first:]
        if first < wave.width:
            start = model.initialize_state(start, positions[:, first:], self.seeds, config.state_scale)
        state = processors.process_start(wave.carry(wave.states, start), refinement)
        refinement.before = refinement.states = state
        state = processors.process_state(state, refinement)
        # With shared keys and values every recurrence writes the same slot; without, each position has its own depth.
        depth = 0 if cache.kv_sharing == "last" else refinement.steps
        for inner in range(config.inner_recurrence):
            state = model.recur(state, e, positions, cache, depth + inner)
        wave.states = refinement.states = processors.process_refined(state, refinement)
        refinement.logits = logits = model.decode(wave.states, positions, cache)
        refinement.predictions, scores = self.choose(wave, logits, input_ids, positions)
        converged = self.criterion(refinement).to(refinement.predictions.device)
        wave.memory = refinement.remembered
        # The tick's only wait for the device: what was predicted, and what has converged.
        predictions, converged = torch.stack((refinement.predictions, converged.long())).tolist()

        self.stats.ticks += 1
        self.stats.core_passes += config.inner_recurrence
        self.stats.positions_refined += config.inner_recurrence * sum(map(len, wave.tokens))
        for row, tokens in enumerate(wave.tokens):
            if tokens:
                self._freeze(wave, row, predictions[row][: len(tokens)], converged[row], logits[row], scores[row])

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
            exhausted = steps[frozen] + 2 * config.inner_recurrence > config.max_steps
            if not (converged[frozen] or exhausted):
                break
            ended = self.committed.commit(self.live[row], predictions[frozen], logits[frozen], scores[frozen])
            frozen += 1
        width = 0 if ended else self.next_width(row, wave.fronts[row] + frozen, len(tokens) - frozen)
        wave.advance(row, frozen, predictions, width, config.inner_recurrence)
