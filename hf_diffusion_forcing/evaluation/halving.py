"""Successive halving under an accuracy budget: measure, drop what loses too much, keep the fastest, measure more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, comb
from typing import Any

from tqdm import tqdm

from .measure import equal_tokens
from .metrics import wilson_interval
from .task import Sample, Task, batched

ETA = 3
"""One in this many candidates reaches the next rung, which has this many times the samples."""
FEWEST_SAMPLES = 4
"""Of a rung and of each split."""
SIGNIFICANCE = 0.05


@dataclass
class Measurement:
    """The results of one sampler on some samples, compared with autoregression on the same.

    Attributes:
        samples: their indices in the task.
        right, base_right: per sample, whether its output was right; empty for a task without references.
        equal_tokens, base_tokens: tokens equal to autoregression's at the same place, and autoregression's tokens.
        tokens, seconds, core_passes: totals; `base_seconds` are autoregression's.
        speedups: tokens per second relative to autoregression, per batch.
    """

    samples: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    base_right: list[bool] = field(default_factory=list)
    equal_tokens: int = 0
    base_tokens: int = 0
    tokens: int = 0
    seconds: float = 0.0
    base_seconds: float = 0.0
    core_passes: int = 0
    speedups: list[float] = field(default_factory=list)

    def add(self, task: Task, samples: tuple[Sample, ...], run: dict[str, Any], base: dict[str, Any]) -> None:
        """Add a batch: the results of `run_batch` for this sampler and for the baseline."""
        self.samples += [sample.index for sample in samples]
        if task.is_judged:
            self.right += [task.is_right(s, text) for s, text in zip(samples, run["texts"], strict=True)]
            self.base_right += [task.is_right(s, text) for s, text in zip(samples, base["texts"], strict=True)]
        self.equal_tokens += equal_tokens(run["tokens"], base["tokens"])
        count, base_count = (sum(map(len, each["tokens"])) for each in (run, base))
        self.base_tokens += base_count
        self.tokens += count
        self.seconds += run["seconds"]
        self.base_seconds += base["seconds"]
        self.core_passes += run["core_passes"]
        self.speedups.append(count / run["seconds"] * base["seconds"] / base_count)

    @property
    def speedup(self) -> float:
        """Tokens per second relative to autoregression, on all samples."""
        return self.tokens_per_second / (self.base_tokens / self.base_seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def accuracy(self) -> float | None:
        return sum(self.right) / len(self.right) if self.right else None

    @property
    def loss(self) -> float | None:
        """Autoregression's accuracy minus this one's, in points."""
        return 100 * (sum(self.base_right) - sum(self.right)) / len(self.right) if self.right else None

    @property
    def token_agreement(self) -> float:
        return self.equal_tokens / self.base_tokens

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        low, high = wilson_interval(sum(self.right), len(self.right)) if self.right else (None, None)
        return {
            "samples": len(self.samples),
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "accuracy_loss": self.loss,
            "token_agreement": self.token_agreement,
            "speedup": self.speedup,
            "speedup_range": [min(self.speedups), max(self.speedups)],
            "tokens_per_second": self.tokens_per_second,
            "core_passes_per_token": self.core_passes / max(self.tokens - len(self.samples), 1),
        }


@dataclass(frozen=True)
class Budget:
    """How much a sampler may lose against autoregression at full depth.

    Attributes:
        max_accuracy_loss: points (per cent of the samples).
        min_token_agreement: share of autoregression's tokens to reproduce at the same place.
    """

    max_accuracy_loss: float = 0.5
    min_token_agreement: float = 0.0

    def keeps(self, measured: Measurement) -> bool:
        """Whether a sampler's measured loss is within the budget."""
        within = measured.loss is None or measured.loss <= self.max_accuracy_loss + 1e-9
        return within and measured.token_agreement >= self.min_token_agreement

    def may_keep(self, measured: Measurement) -> bool:
        """Whether a sampler may still be within the budget: its loss is not significantly larger.

        Only the m of n samples on which the two differ count. If the true loss equals the allowed one, each of them is
        a loss with probability 1/2 + loss / (2 m / n); by chance, fewer than one search in twenty has more losses.
        """
        if measured.token_agreement < self.min_token_agreement:
            return False
        both = list(zip(measured.right, measured.base_right, strict=True))
        losses = sum(theirs and not mine for mine, theirs in both)
        differ = sum(mine != theirs for mine, theirs in both)
        if not differ:
            return True
        chance = min(0.5 + self.max_accuracy_loss / 100 * len(both) / (2 * differ), 1.0)
        tail = sum(comb(differ, k) * chance**k * (1 - chance) ** (differ - k) for k in range(losses, differ + 1))
        return tail >= SIGNIFICANCE


@dataclass
class Trial:
    """One candidate.

    Attributes:
        name: its spelling.
        kwargs: keywords of `generate()`.
        calibration: its results during the search.
        confirmation: its results on the confirmation samples, if any.
        preset: its preset, if it is one.
        finalist: whether it reached the last rung.
    """

    name: str
    kwargs: dict[str, Any]
    calibration: Measurement = field(default_factory=Measurement)
    confirmation: Measurement = field(default_factory=Measurement)
    preset: str | None = None
    finalist: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        stages = {"calibration": self.calibration, "confirmation": self.confirmation}
        measured = {stage: each.to_dict() if each.samples else None for stage, each in stages.items()}
        return {"name": self.name, "preset": self.preset, "kwargs": self.kwargs, "finalist": self.finalist} | measured


class OutOfTime(Exception):
    """The search has run out of time."""


def plan_rungs(candidates: int, samples: int, finalists: int) -> list[tuple[int, int]]:
    """For every rung, the number of candidates and their samples so far."""
    counts = [candidates]
    while counts[-1] > finalists:
        counts.append(max(finalists, ceil(counts[-1] / ETA)))
    last = len(counts) - 1
    fewest = min(FEWEST_SAMPLES, samples)
    return [(count, max(fewest, round(samples / ETA ** (last - rung)))) for rung, count in enumerate(counts)]


class Halving:
    """A search over candidates, each measured next to the baseline, batch by batch.

    Args:
        trials: the candidates.
        calibration: the only samples that the search uses.
        measure: decodes samples with keywords of `generate()` and returns what `run_batch` does.
        baseline: keywords of autoregression at full depth.
        budget: what a candidate may lose.
        batch_size: samples decoded together.
        finalists: the number of candidates in the last rung.
        deadline: on `clock`, when to stop; never when None.
        clock: seconds.
    """

    def __init__(
        self,
        trials: list[Trial],
        calibration: Task,
        measure: Callable[[tuple[Sample, ...], dict[str, Any]], dict[str, Any]],
        baseline: dict[str, Any],
        budget: Budget,
        batch_size: int = 1,
        finalists: int = 3,
        deadline: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        progress: bool = False,
    ):
        self.trials, self.calibration, self.measure, self.baseline = trials, calibration, measure, baseline
        self.budget, self.batch_size, self.finalists = budget, batch_size, finalists
        self.deadline, self.clock = deadline, clock
        self.rungs = plan_rungs(len(trials), len(calibration.samples), finalists)
        self.base_seconds, self.base_samples = 0.0, 0
        self.bar = tqdm(disable=not progress, desc="calls", total=0)

    def plan(self, confirmation: Task, others: int) -> None:
        """Tell the progress bar how many calls will follow; `others` are those of presets in the confirmation."""
        calls, seen = 0, 0
        for count, samples in self.rungs:
            calls += (count + 1) * ceil((samples - seen) / self.batch_size)
            seen = samples
        batches = ceil(len(confirmation.samples) / self.batch_size)
        calls += batches * (2 * min(self.finalists, len(self.trials)) + bool(others) + others)
        self.bar.reset(calls)

    def search(self, reserve: int = 0) -> list[Trial]:
        """The finalists that calibration shows within the budget, fastest first.

        Args:
            reserve: samples to leave time for afterwards, for autoregression and one candidate.
        """
        alive, seen = list(self.trials), 0
        try:
            for rung, (count, samples) in enumerate(self.rungs):
                for batch in batched(self.calibration.samples[seen:samples], self.batch_size):
                    self.check_time(reserve)
                    self.decode(self.calibration, batch, alive, "calibration")
                following = self.rungs[rung + 1][0] if rung + 1 < len(self.rungs) else count
                alive, seen = self.survivors(alive)[:following], samples
        except OutOfTime:
            alive = self.survivors(alive)
        for trial in alive[: self.finalists]:
            trial.finalist = True
        return alive[: self.finalists]

    def check_time(self, reserve: int = 0) -> None:
        """Stop while there is time for `reserve` samples, of which a candidate takes less than the baseline.

        Raises:
            OutOfTime: it is time to stop.
        """
        needed = reserve * 2 * self.base_seconds / max(self.base_samples, 1)
        if self.deadline is not None and self.clock() + needed > self.deadline:
            raise OutOfTime

    def survivors(self, trials: list[Trial]) -> list[Trial]:
        """The candidates whose loss is not significantly above the budget, fastest first."""
        kept = [trial for trial in trials if self.budget.may_keep(trial.calibration)]
        return sorted(kept, key=lambda trial: -trial.calibration.speedup)

    def confirm(self, task: Task, trials: list[Trial]) -> None:
        """Measure candidates on samples that the search did not use.

        Raises:
            OutOfTime: the deadline has come; the candidates are not confirmed.
        """
        measured = [Trial(trial.name, trial.kwargs) for trial in trials]
        for batch in batched(task.samples, self.batch_size):
            self.check_time()
            self.decode(task, batch, measured, "confirmation")
        for trial, whole in zip(trials, measured, strict=True):
            trial.confirmation = whole.confirmation

    def decode(self, task: Task, batch: tuple[Sample, ...], trials: list[Trial], stage: str) -> None:
        """Decode a batch with the baseline and then with every candidate, under the same conditions."""
        base = self.measure(batch, self.baseline)
        self.base_seconds += base["seconds"]
        self.base_samples += len(batch)
        self.bar.update()
        runs = []
        for trial in trials:
            runs.append(self.measure(batch, trial.kwargs))
            self.bar.update()
        for trial, run in zip(trials, runs, strict=True):
            getattr(trial, stage).add(task, batch, run, base)
