"""Adaptive early exit: one token at a time, each refined until it has converged (arXiv 2502.05171, section 6.1)."""

import torch

from ..hooks.refinement import Refinement
from ..settings.adaptive import AdaptiveConfig
from .early_exit import EarlyExitSampler
from .wavefront import Wavefront


class Adaptive(EarlyExitSampler):
    """`sampler="adaptive"`: a tick is one recurrence of every row's front position.

    Rows exit and go on at their own pace: the prelude runs when some row has a new token, the coda when some row exits
    (or in every tick, for a criterion that reads logits).
    """

    config_class = AdaptiveConfig
    config: AdaptiveConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.positions: torch.Tensor | None = None

    def next_width(self, row: int, front: int, kept: int) -> int:
        """One position, while the length limit has room for what it predicts."""
        return min(1, self.last_position(row) - front + 1)

    def tick(self, wave: Wavefront) -> None:
        """One recurrence; commit the tokens of the rows whose position has converged or is at its budget."""
        model, cache, budget = self.model, self.cache, self.config.num_steps
        fresh = wave.first_fresh < wave.width
        input_ids, positions, steps, new = wave.tensors()
        if self.positions is None or len(self.positions) != len(wave.tokens):
            # The same tensor until a row exits: its placement is made once.
            self.positions = positions
            cache.place(positions, start=wave.start, extent=wave.extent)
        positions, memory = self.positions, wave.recall()
        e = model.embed(input_ids, positions, cache) if fresh else memory["sampler.embedding"]
        start = model.initialize_state(e, positions, self.seeds, self.config.state_scale) if fresh else e[:, 1:]
        refinement = Refinement(
            positions=positions,
            input_ids=input_ids,
            fresh=new,
            steps=steps,
            recurrences=1,
            budget=budget,
            seeds=self.seeds,
            model=model,
            memory=memory,
        )
        refinement.before = wave.carry(wave.states, start)
        depth = 0 if cache.kv_sharing == "last" else refinement.steps
        wave.states = refinement.states = model.recur(refinement.before, e, positions, cache, depth)
        refinement.before = refinement.before.to(wave.states.device)  # the core may stand on another device
        if self.criterion.needs_logits:
            self._read_out(wave, refinement)
        exhausted = refinement.steps.to(e.device) + 1 >= budget
        exits = self.converged(refinement).to(e.device) | exhausted
        if bits := self.exit_bits(refinement):
            exits = torch.stack((exits.long(), bits[0].to(e.device)))
            exits, *bits = exits.tolist()
        else:
            exits = exits.tolist()
        exits = [exit and bool(tokens) for (exit,), tokens in zip(exits, wave.tokens, strict=True)]
        if any(exits) and refinement.predictions is None:
            self._read_out(wave, refinement)
        refinement.remember("sampler.embedding", e)
        wave.memory = refinement.remembered

        predictions = [None] * len(exits)
        if any(exits):
            chosen, self.positions = refinement.predictions[:, 0].tolist(), None
            predictions = [token if exit else None for token, exit in zip(chosen, exits, strict=True)]
        observed = self.observe_wave(wave, 1, [[token] for token in predictions], bits)
        self.stats.ticks += 1
        self.stats.core_passes += 1
        self.stats.positions_refined += sum(map(len, wave.tokens))
        for row, token in enumerate(predictions):
            if token is not None:
                ended = self.committed.commit(self.live[row], token, refinement.logits[row, 0], self.scores[row, 0])
                wave.advance(row, 1, [token], 0 if ended else self.next_width(row, wave.fronts[row] + 1, 0), 1)
            elif wave.tokens[row]:
                wave.advance(row, 0, [], 1, 1)
        self.record(observed)

    def _read_out(self, wave: Wavefront, refinement: Refinement) -> None:
        """Logits and predictions of the states as they are; the coda's keys and values of a row that goes on are
        written again when it exits."""
        refinement.logits = self.model.decode(refinement.states, refinement.positions, self.cache)
        refinement.predictions, self.scores = self.choose(
            wave, refinement.logits, refinement.input_ids, refinement.positions
        )
