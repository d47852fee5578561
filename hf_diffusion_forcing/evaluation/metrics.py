"""Metrics as modules of Hugging Face `evaluate`, which need no download and work like any other.

    >>> ExactAnswer().compute(predictions=["The answer is 4."], references=["4"], answer_pattern=r"(\\d+)")

Each is a class of its own with `_info` and `_compute`, as `evaluate.load()` expects of a Space's script.
"""

from __future__ import annotations

import math
from statistics import NormalDist, fmean

from .measure import equal_tokens
from .task import find_answer, reference_answer, same_answer

try:
    import datasets
    import evaluate
    from rapidfuzz.distance import Levenshtein
except ImportError as error:
    raise ImportError(
        f'Evaluation needs datasets, evaluate and rapidfuzz ({error}): pip install "hf-diffusion-forcing[eval]"'
    ) from error

TEXTS = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
TOKENS = datasets.Features(
    {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.List(datasets.Value("int64"))}
)


def wilson_interval(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a share, which also holds if few or no samples are right.

    Args:
        right, count: the share is right / count; `count` is at least 1.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = right / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / count / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)


class ExactAnswer(evaluate.Metric):
    """Share of texts whose answer is the reference's.

    `compute(predictions=texts, references=texts, answer_pattern=None)` returns `exact_answer` (the share), its 95 %
    confidence interval `low` and `high` (Wilson), and `answered`, the share of texts in which there is an answer.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of texts whose answer, found by a pattern, is the reference's.",
            citation="",
            inputs_description="Texts, reference texts, and a regular expression whose first group is the answer.",
            features=TEXTS,
        )

    def _compute(self, predictions: list[str], references: list[str], answer_pattern: str | None = None):
        answers = [find_answer(answer_pattern, text) for text in predictions]
        pairs = zip(answers, references, strict=True)
        right = sum(same_answer(answer, reference_answer(answer_pattern, text)) for answer, text in pairs)
        low, high = wilson_interval(right, len(answers))
        answered = sum(answer is not None for answer in answers)
        return {
            "exact_answer": right / len(answers),
            "low": low,
            "high": high,
            "answered": answered / len(answers),
        }


class TokenAgreement(evaluate.Metric):
    """Share of the references' tokens that the predictions have at the same place.

    `compute(predictions=ids, references=ids)` returns `token_agreement` and `same`, the share of sequences that are
    equal as a whole.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of the references' tokens reproduced at the same place.",
            citation="",
            inputs_description="Lists of token ids.",
            features=TOKENS,
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]]):
        pairs = zip(predictions, references, strict=True)
        return {
            "token_agreement": equal_tokens(predictions, references) / max(sum(map(len, references)), 1),
            "same": fmean(list(mine) == list(theirs) for mine, theirs in pairs),
        }


class EditDistance(evaluate.Metric):
    """Levenshtein distance in characters, as a share of the longer text.

    `compute(predictions=texts, references=texts)` returns `edit_distance`, the mean: 0 for equal texts, 1 for texts
    with nothing in common.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean Levenshtein distance in characters, as a share of the longer text.",
            citation="",
            inputs_description="Texts and reference texts.",
            features=TEXTS,
        )

    def _compute(self, predictions: list[str], references: list[str]):
        pairs = zip(predictions, references, strict=True)
        return {"edit_distance": fmean(Levenshtein.normalized_distance(a, b) for a, b in pairs)}
