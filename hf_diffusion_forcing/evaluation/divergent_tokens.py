"""Where two texts diverge: at which token, of what kind, and how sure the model was of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KINDS = ("digit", "word", "punctuation", "whitespace", "end of text")


@dataclass(frozen=True)
class Divergence:
    """The first token of a sample's output that is not the baseline's.

    Attributes:
        index: index of the sample.
        position: index of the token in the output, from 0.
        kind: kind of the baseline's token, one of `KINDS`.
        before: the end of the shared text.
        expected, found: text of the token in the baseline and in the other output; "" if the output ended.
        expected_text, found_text: how each output continues.
        entropy: entropy of the model's distribution at full depth, in nats.
        margin: log-probability of the likeliest token minus that of the second, in nats.
        rank: rank of the found token in that distribution, from 1; None if the output ended.
        recurrences: those the other sampler spent on the token; None without a trace, or if the prompt predicted it.
        exit_value: the exit criterion's value when the token was committed; None if there is none.
        expected_right, found_right: whether each output's answer is right; None without a reference.
    """

    index: int
    position: int
    kind: str
    before: str
    expected: str
    found: str
    expected_text: str
    found_text: str
    entropy: float
    margin: float
    rank: int | None
    recurrences: int | None
    exit_value: float | None
    expected_right: bool | None
    found_right: bool | None


@dataclass(frozen=True)
class TokenRecord:
    """One token of the baseline's outputs, up to and including the first that differs.

    Attributes:
        kind: one of `KINDS`.
        entropy, margin, recurrences, exit_value: as in `Divergence`.
        differs: whether it is the first that differs.
    """

    kind: str
    entropy: float
    margin: float
    recurrences: int | None
    exit_value: float | None
    differs: bool


def first_difference(expected: list[int], found: list[int]) -> int | None:
    """The first index at which two lists differ; the shorter one's length if it is a prefix; None if equal."""
    for place, (theirs, mine) in enumerate(zip(expected, found, strict=False)):
        if theirs != mine:
            return place
    return None if len(expected) == len(found) else min(len(expected), len(found))


def token_kind(tokenizer, ids: list[int], place: int) -> str:
    """The kind of a token, one of `KINDS`; the place after the last token is an end, too."""
    if place == len(ids) or ids[place] in tokenizer.all_special_ids:
        return "end of text"
    text = tokenizer.decode(ids[place])
    if not text.strip():
        return "whitespace"
    if any(character.isdigit() for character in text):
        return "digit"
    return "word" if any(character.isalpha() for character in text) else "punctuation"


@torch.no_grad()
def readouts(model, tokenizer, prompt: str, ids: list[int], seed: int, config) -> torch.Tensor:
    """The model's full-depth logits for every token of an output, and for one more after it.

    Args:
        ids: the output's tokens.
        seed: seed of the row.
        config: the baseline's settings, every depth filled in.

    Returns:
        float32 [tokens + 1, vocabulary], logits.
    """
    start = tokenizer(prompt).input_ids
    text = torch.tensor([start + ids], device=model.device)
    output = model(
        text,
        num_steps=config.num_steps,
        state_scale=config.state_scale,
        seeds=torch.tensor([seed], device=model.device),
        logits_to_keep=len(ids) + 1,
    )
    return output.logits[0].float()


def certainty(logits: torch.Tensor) -> tuple[float, float]:
    """Entropy of a distribution, and the margin between its two largest log-probabilities, both in nats.

    Args:
        logits: float32 [vocabulary].
    """
    log_probabilities = logits.log_softmax(-1)
    first, second = log_probabilities.topk(2).values.tolist()
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities.clamp(min=-1e4)).sum().item(), first - second
