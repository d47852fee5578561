"""Measurements: problems solved, time against time, and how many recurrences tokens need."""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from tqdm import tqdm

from ..cache import NoCache
from ..generation.diffusion_forcing import DiffusionForcing
from ..generation.samplers import SAMPLERS
from ..hooks.latent_criteria import latent_difference
from ..randomness import row_seeds
from .problems import Problem


def solve(
    model, tokenizer, problems: list[Problem], batch_size: int = 32, progress: str | None = None, **generate_kwargs
) -> list[str]:
    """The model's answers to problems, as text.

    Args:
        model, tokenizer: a causal language model and its left-padding tokenizer.
        problems: answered in batches of `batch_size`, each row with the seed 0.
        progress: label of a progress bar; none when None.
        generate_kwargs: of `model.generate`.
    """
    answers = []
    for first in tqdm(range(0, len(problems), batch_size), desc=progress, disable=progress is None, leave=False):
        batch = problems[first : first + batch_size]
        inputs = tokenizer([p.prompt for p in batch], return_tensors="pt", padding=True).to(model.device)
        ids = model.generate(**inputs, seed=[0] * len(batch), **generate_kwargs)
        answers += tokenizer.batch_decode(ids[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return answers


def accuracy(problems: list[Problem], answers: list[str]) -> float:
    """Share of answers that end in the right number."""
    right = [problem.is_solved_by(answer) for problem, answer in zip(problems, answers, strict=True)]
    return sum(right) / len(right)


@torch.no_grad()
def recurrences_to_converge(
    model, input_ids: torch.Tensor, threshold: float = 0.03, limit: int = 64, state_scale: float = 1.0
) -> torch.Tensor:
    """First recurrence at which each position's state moves by less than `threshold`, int64 [batch, width].

    The text is given (teacher forcing) and all positions are refined together; `limit` + 1 where none did.

    Args:
        input_ids: int64 [batch, width], without padding on the left.
    """
    batch, width = input_ids.shape
    cache = NoCache()
    positions = torch.arange(width, device=input_ids.device).expand(batch, width)
    cache.place(positions, start=0)
    e = model.embed(input_ids, positions, cache)
    state = model.initialize_state(e, positions, row_seeds([0] * batch, batch, e.device), state_scale)
    needed = torch.full((batch, width), limit + 1, device=e.device)
    for depth in range(limit):
        before, state = state, model.recur(state, e, positions, cache, depth)
        settled = (latent_difference(state, before) < threshold) & (needed > limit)
        needed[settled] = depth + 1
    return needed


@torch.no_grad()
def emitted_loss(model, input_ids: torch.Tensor, text: list[int]) -> float:
    """Mean loss (nats a token) of a text after its prompt, under the model at its full depth.

    Args:
        input_ids: int64 [1, length], the prompt.
        text: the tokens that were emitted after it.
    """
    ids = torch.cat((input_ids, torch.tensor([text], device=input_ids.device)), dim=1)
    labels = ids.clone()
    labels[:, : input_ids.shape[1]] = -100
    return model(ids, labels=labels, seeds=torch.zeros(1, dtype=torch.int64, device=ids.device)).loss.item()


def equal_tokens(sequences: list[list[int]], others: list[list[int]]) -> int:
    """How many tokens are equal to those at the same place of the other sequences."""
    pairs = zip(sequences, others, strict=True)
    return sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))


@dataclass
class Run:
    """What one sampler did over all prompts.

    Attributes:
        sequences: new token ids per prompt.
        core_passes: core calls while decoding (the prompt's own pass not counted).
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
        """Share of the other run's tokens that this one has at the same place."""
        return equal_tokens(self.sequences, other.sequences) / max(other.tokens, 1)


def run_prompt(model, input_ids: torch.Tensor, run: Run, **generate_kwargs) -> None:
    """Decode one prompt [1, length] with a run's settings and add what happened to the run."""
    start = time.perf_counter()
    output = model.generate(input_ids, **run.kwargs, **generate_kwargs, return_dict_in_generate=True)
    run.seconds.append(time.perf_counter() - start)
    new = output.sequences[0, input_ids.shape[1] :].tolist()
    run.sequences.append(new)
    stats = getattr(output, "stats", None)
    steps = run.kwargs.get("num_steps") or model.config.mean_recurrence
    run.core_passes += stats.core_passes if stats is not None else steps * (len(new) - 1)
    run.recurrences += stats.positions_refined if stats is not None else steps * (len(new) - 1)


def compare(model, prompts: Iterable[torch.Tensor], runs: list[Run], **generate_kwargs) -> list[Run]:
    """Decode every prompt with every run, interleaved so that all see the same machine.

    Args:
        prompts: ids int64 [1, length] each.
        runs: the settings to compare; filled in and returned.
        generate_kwargs: given to every `generate()` call.
    """
    for position, input_ids in enumerate(prompts):
        if position == 0:
            for run in runs:  # warm up: the first call of a process pays for lazy initialisation
                run_prompt(model, input_ids, Run(run.name, run.kwargs), **generate_kwargs | {"max_new_tokens": 4})
        for run in runs:
            run_prompt(model, input_ids, run, **generate_kwargs)
    return runs


def tick_overhead(model, input_ids: torch.Tensor, **generate_kwargs) -> float:
    """Share of a tick's wall clock spent outside the model's own forward passes (embed, recur, decode).

    Args:
        input_ids: int64 [1, length].
        generate_kwargs: of a `diffusion_forcing` call.
    """
    inside = 0.0

    def timed(verb):
        def call(*args, **kwargs):
            nonlocal inside
            start = time.perf_counter()
            result = verb(*args, **kwargs)
            inside += time.perf_counter() - start
            return result

        return call

    class Timed(DiffusionForcing):
        def tick(self, wave):
            nonlocal total
            start = time.perf_counter()
            super().tick(wave)
            total += time.perf_counter() - start

        def prefill(self, *args):
            nonlocal inside
            wave = super().prefill(*args)
            inside = 0.0
            return wave

    total = 0.0
    verbs = {name: getattr(model, name) for name in ("embed", "recur", "decode")}
    with ExitStack() as patches:
        for name, verb in verbs.items():
            patches.enter_context(patch.object(model, name, timed(verb)))
        patches.enter_context(patch.dict(SAMPLERS, {DiffusionForcing.config_class.sampler: Timed}))
        model.generate(input_ids, sampler=DiffusionForcing.config_class.sampler, **generate_kwargs)
    if not total:
        raise ValueError("The text ended at its first token: there was no tick to time. Give another prompt.")
    return 1 - inside / total
