"""Times several samplers on the same prompts."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from .decoding import WARM_UP_TOKENS
from .measure import equal_tokens
from .timing import timed_generate


@dataclass
class Run:
    """The results of one sampler on all prompts.

    Attributes:
        sequences: new token ids per prompt.
        core_passes: core calls while decoding, without the prompt's own pass.
        recurrences: the same, counted once for every position in the call.
        seconds: wall clock of each `generate()` call.
    """

    name: str
    kwargs: dict
    sequences: list[list[int]] = field(default_factory=list)
    core_passes: int = 0
    recurrences: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / sum(self.seconds)

    @property
    def passes_per_token(self) -> float:
        """Core passes per decoded token; each text's first token comes from its prompt's own pass."""
        return self.core_passes / max(self.tokens - len(self.sequences), 1)

    @property
    def recurrences_per_token(self) -> float:
        """Position refinements per decoded token."""
        return self.recurrences / max(self.tokens - len(self.sequences), 1)

    def equal_share(self, other: "Run") -> float:
        """Share of the other run's tokens that this run has at the same place."""
        return equal_tokens(self.sequences, other.sequences) / max(other.tokens, 1)


def run_prompt(model, input_ids: torch.Tensor, run: Run, **generate_kwargs) -> None:
    """Decode one prompt [1, length] with a run's settings and add the results to the run."""
    call = timed_generate(model, {"input_ids": input_ids}, run.kwargs | generate_kwargs)
    run.seconds.append(call.seconds)
    run.sequences += call.rows
    run.core_passes += call.core_passes
    run.recurrences += call.recurrences


def compare(model, prompts: Iterable[torch.Tensor], runs: list[Run], **generate_kwargs) -> list[Run]:
    """Decode every prompt with every run, interleaved so that all run under the same conditions.

    Args:
        prompts: ids int64 [1, length] each.
        runs: the settings to compare; results are added to them.
        generate_kwargs: keywords of every `generate()` call.
    """
    for position, input_ids in enumerate(prompts):
        if position == 0:
            for run in runs:  # warm up: a process's first call includes lazy initialisation
                run_prompt(
                    model, input_ids, Run(run.name, run.kwargs), **generate_kwargs | {"max_new_tokens": WARM_UP_TOKENS}
                )
        for run in runs:
            run_prompt(model, input_ids, run, **generate_kwargs)
    return runs
