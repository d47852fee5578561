"""Reading the prompts of rows until they converge."""

from __future__ import annotations

from collections.abc import Generator

import torch

from ..cache import Placement
from ..hooks.exit_criterion import ExitCriterion
from ..hooks.refinement import Refinement
from .prompt import Prompt, PromptReader, PromptWatcher
from .verdict import verdict


class AdaptivePromptReader(PromptReader):
    """A `PromptReader` that freezes each row's longest converged prefix after every recurrence.

    A position freezes only after all those on its left have, and positions that see each other in both directions
    freeze together. `prompt_steps` limits the recurrences.

    Args:
        criterion: decides after every recurrence which positions have converged.
    """

    def __init__(self, *args, criterion: ExitCriterion):
        super().__init__(*args)
        self.criterion = criterion

    def refine(
        self, prompt: Prompt, watcher: PromptWatcher | None
    ) -> Generator[None, None, tuple[torch.Tensor, Placement]]:
        model, cache, steps = self.model, self.cache, self.config.prompt_steps
        whole = at = prompt.place(cache)
        e = model.embed(prompt.ids, at, prompt.embeds)
        states = model.initialize_state(e, prompt.positions, prompt.seeds, self.config.state_scale)
        settled, memory = [0] * len(prompt.rows), {}
        for step in range(steps):
            going = Unsettled(prompt, settled)
            before = going.take(states)
            refined = model.recur(before, going.take(e), at, step)
            previous, states = states.to(refined.device), going.put(refined, states)
            if watcher is not None:
                watcher(states, previous, whole, prompt)
            refinement = self._refinement(going, at, step, memory, before.to(refined.device), refined)
            # How many more positions of each row have converged: the recurrence's only wait for the device.
            counts = going.prefixes(verdict(self.criterion, refinement).tolist()[0])
            cache.settle(at, step + 1)
            self.stats.prefill_core_passes += 1
            settled = [done + count for done, count in zip(settled, counts, strict=True)]
            if settled == prompt.widths:
                break
            if any(counts):
                memory = {key: going.drop(kept, counts) for key, kept in refinement.remembered.items()}
                at = prompt.place(cache, settled)
            else:
                memory = refinement.remembered
            yield
        return states, whole

    def _refinement(self, going: Unsettled, at: Placement, step: int, memory, before, states) -> Refinement:
        """The `Refinement` of one recurrence, for the criterion."""
        positions = at.positions
        refinement = Refinement(
            positions=positions,
            input_ids=going.take(going.prompt.ids),
            fresh=torch.full_like(positions, step == 0, dtype=torch.bool),
            rows=at.rows,
            steps=torch.full_like(positions, step),
            recurrences=1,
            budget=self.config.prompt_steps,
            seeds=going.take(going.prompt.seeds),
            model=self.model,
            memory=memory,
            before=before,
            states=states,
        )
        if self.criterion.needs_logits:
            refinement.logits = self.model.decode(states, at)
            refinement.predictions = refinement.logits.argmax(-1)
        return refinement


class Unsettled:
    """The positions of a prompt still being refined: those after each row's frozen prefix.

    Args:
        prompt: the chunk.
        settled: how many positions of each row are frozen.
    """

    def __init__(self, prompt: Prompt, settled: list[int]):
        self.prompt, self.settled = prompt, settled
        self.widths = [width - done for width, done in zip(prompt.widths, settled, strict=True)]

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] without the frozen positions."""
        return self.prompt.without(x, self.settled) if any(self.settled) else x

    def put(self, refined: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, ...] with the unfrozen positions replaced by `refined`."""
        if not any(self.settled):
            return refined
        x, parts = x.to(refined.device), []
        rows = zip(x.split(self.prompt.widths, dim=1), refined.split(self.widths, dim=1), self.settled, strict=True)
        for old, new, done in rows:
            parts += [old[:, :done], new]
        return torch.cat(parts, dim=1)

    def prefixes(self, flags: list[bool]) -> list[int]:
        """How many of each row's flags are set before the first that is not, without a part of a block."""
        counts, begin, prompt = [], 0, self.prompt
        for row, start, done, width in zip(prompt.rows, prompt.starts, self.settled, self.widths, strict=True):
            own = flags[begin : begin + width]
            count = own.index(False) if False in own else width
            counts.append(row.count_with_whole_block(start + done, count))
            begin += width
        return counts

    def drop(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """The unfrozen positions x [1, ...] without each row's first `counts`."""
        parts = zip(x.split(self.widths, dim=1), counts, strict=True)
        return torch.cat([part[:, count:] for part, count in parts], dim=1)
