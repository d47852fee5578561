"""The corpora of `train_bundled.py`: each defines how its text is tokenized and the batches of a step."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import torch
from transformers import PreTrainedTokenizerFast

from .problems import CHAT_TEMPLATE, MAX_CHAIN, Problem, problems
from .python_source import read_source, source_files

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids and labels, int64 [rows, width]; -100 is not learned."""


class Corpus(ABC):
    """One kind of training text.

    Attributes:
        words: regular expression of the pieces that tokens may not cross.
        chat_template: the tokenizer's chat template, or None.
        fewest_recurrences: smallest depth of a step.
        depth_ramp: mean depth of the next step, before the limit of `--mean-recurrence`.
        progress: the state that resuming needs and the progress bar shows.
    """

    words: str
    chat_template: str | None = None
    fewest_recurrences = 1
    depth_ramp = 9
    tokenizer: PreTrainedTokenizerFast

    def __init__(self):
        self.progress: dict[str, float] = {}

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Texts to train the tokenizer on."""

    @abstractmethod
    def batches(self, step: int) -> dict[str, Batch]:
        """The batches of a step, by their name in the progress bar."""

    @abstractmethod
    def observe(self, name: str, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Use the model's output for a batch to choose the next ones."""


class ProblemCorpus(Corpus):
    """Worked and mental problems. Mental chains grow by one operation when the longest ones are solved.

    Args:
        worked_batch: worked problems per step (while chains grow, in every second step).
        mental_tokens: approximate tokens of mental problems per step; with 0, every step has worked problems.
    """

    words = r"\d| ?[^\s\d]+|\s+"
    chat_template = CHAT_TEMPLATE
    promotion_accuracy = 0.87
    """The moving average of accuracy on the longest mental chains that makes them grow."""

    def __init__(self, seed: int, worked_batch: int, mental_tokens: int):
        super().__init__()
        self.seed, self.worked_batch, self.mental_tokens = seed, worked_batch, mental_tokens
        self.progress = {"longest": 2, "mental_accuracy": 0.0}

    def texts(self):
        return (p.prompt + p.answer for p in islice(problems(self.seed), 20_000))

    @property
    def longest(self) -> int:
        """Operations of the longest mental chains so far."""
        return int(self.progress["longest"])

    @property
    def fewest_recurrences(self) -> int:
        """At least n for chains of n operations; with fewer, the core would learn shortcuts."""
        return self.longest

    @property
    def depth_ramp(self) -> int:
        return 8 + self.longest // 2

    def batches(self, step):
        rng = random.Random(self.seed * 1_000_003 + step)
        rows = self.mental_tokens // (12 + 3 * self.longest)
        worked = problems(rng.getrandbits(48), kind="worked")
        mental = problems(rng.getrandbits(48), kind="mental", lengths=(1, self.longest))
        longest = problems(rng.getrandbits(48), kind="mental", lengths=(self.longest, self.longest))
        # Chains come first: they are learned one operation at a time, but written-out steps all at once.
        count = self.worked_batch if step % 2 or self.longest == MAX_CHAIN or not rows else 0
        batches = {
            "worked": [next(worked) for _ in range(count)],
            "mental": [next(longest if row % 2 else mental) for row in range(rows)],
        }
        return {kind: self.encode(batch) for kind, batch in batches.items() if batch}

    def encode(self, batch: list[Problem]) -> Batch:
        """Ids and labels, padded on the right.

        The answer and the end token are learned. In a mental prompt, the readout at each operand also learns the digit
        so far. That digit is never part of a text, but it teaches the latents what to hold; without it, chains of two
        operations were still near chance after 450 steps.
        """
        tokenizer = self.tokenizer
        prompts = tokenizer([p.prompt for p in batch])["input_ids"]
        answers = tokenizer([p.answer + tokenizer.eos_token for p in batch])["input_ids"]
        digit_ids = [tokenizer(str(digit)).input_ids[0] for digit in range(10)]
        width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(batch), width), tokenizer.pad_token_id)
        labels = torch.full((len(batch), width), -100)
        for row, (problem, prompt, answer) in enumerate(zip(batch, prompts, answers, strict=True)):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
            if problem.kind == "mental":
                operands = [column for column, token in enumerate(prompt) if token in digit_ids]
                for column, digit in zip(operands, running_digits(problem), strict=True):
                    labels[row, column + 1] = digit_ids[digit]  # a position's label is one column to its right
        return ids, labels

    def observe(self, name, logits, labels):
        if name != "mental":
            return
        average = self.progress["mental_accuracy"]
        average += 0.03 * (result_accuracy(logits[1::2], labels[1::2]) - average)
        if average > self.promotion_accuracy and self.longest < MAX_CHAIN:
            self.progress = {"longest": self.longest + 1, "mental_accuracy": 0.5}
        else:
            self.progress["mental_accuracy"] = average


class SourceCorpus(Corpus):
    """Windows of the standard library's source.

    Args:
        rows, width: windows per step and tokens of each.
    """

    words = r"\d| ?[A-Za-z_]+|\n *| ?[^\sA-Za-z_\d]+|\s+"

    def __init__(self, seed: int, rows: int, width: int):
        super().__init__()
        self.seed, self.rows, self.width = seed, rows, width
        self.stream: torch.Tensor | None = None

    def texts(self):
        return map(read_source, source_files())

    def batches(self, step):
        if self.stream is None:
            files = self.tokenizer([text + self.tokenizer.eos_token for text in self.texts()]).input_ids
            self.stream = torch.tensor([token for file in files for token in file])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        starts = torch.randint(len(self.stream) - self.width, (self.rows, 1), generator=generator)
        ids = self.stream[starts + torch.arange(self.width)]
        return {"source": (ids, ids)}

    def observe(self, name, logits, labels):
        """Does nothing: the next windows do not depend on the model."""


def running_digits(problem: Problem) -> list[int]:
    """The last digit after the start and after every operation of a mental problem."""
    start, *operations = problem.key.split()[1:]
    digits = [int(start)]
    for operation in operations:
        sign, amount = operation[0], int(operation[1:])
        digits.append({"+": digits[-1] + amount, "-": digits[-1] - amount, "*": digits[-1] * amount}[sign] % 10)
    return digits


def result_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of mental rows with the right result, which is the third label from the end, before full stop and end."""
    place = (labels != -100).cumsum(-1)
    result = (place == place[:, -1:] - 2).int().argmax(-1)
    rows = torch.arange(len(labels))
    return (logits[rows, result - 1].argmax(-1) == labels[rows, result]).float().mean().item()
