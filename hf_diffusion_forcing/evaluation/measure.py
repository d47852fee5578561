"""Measures quality: problems solved, losses, equal tokens, and the recurrences that tokens need."""

import torch
from tqdm import tqdm

from ..cache import NoCache
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
    """The first recurrence that moves each position's state by less than `threshold`, int64 [batch, width].

    The text is given (teacher forcing) and all positions are refined together; `limit` + 1 if there is none.

    Args:
        input_ids: int64 [batch, width], without padding on the left.
    """
    batch, width = input_ids.shape
    positions = torch.arange(width, device=input_ids.device).expand(batch, width)
    at = NoCache().place(positions, start=0)
    e = model.embed(input_ids, at)
    state = model.initialize_state(e, positions, row_seeds([0] * batch, batch, e.device), state_scale)
    needed = torch.full((batch, width), limit + 1, device=e.device)
    for depth in range(limit):
        before, state = state, model.recur(state, e, at, depth)
        settled = (latent_difference(state, before) < threshold) & (needed > limit)
        needed[settled] = depth + 1
    return needed


@torch.no_grad()
def emitted_loss(model, input_ids: torch.Tensor, text: list[int]) -> float:
    """Mean loss (nats per token) of a text after its prompt, at the model's full depth.

    Args:
        input_ids: int64 [1, length], the prompt.
        text: the tokens after it.
    """
    ids = torch.cat((input_ids, torch.tensor([text], device=input_ids.device)), dim=1)
    labels = ids.clone()
    labels[:, : input_ids.shape[1]] = -100
    return model(ids, labels=labels, seeds=torch.zeros(1, dtype=torch.int64, device=ids.device)).loss.item()


def equal_tokens(sequences: list[list[int]], others: list[list[int]]) -> int:
    """How many tokens equal those at the same place in the other sequences."""
    pairs = zip(sequences, others, strict=True)
    return sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
