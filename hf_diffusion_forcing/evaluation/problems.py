"""Arithmetic problems with known answers, made from a seed, to train and test the bundled checkpoint.

*Worked* problems are word problems whose answers write out every step. *Mental* ones are chains of small operations on
the last digit; their answers have only the result, so the work must happen in latent space. A hash of a problem's
numbers (not its names) decides if it is held out, so training never sees a held-out sum under another name.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

KINDS = ("worked", "mental")
MAX_CHAIN = 8
MENTAL_OPERATIONS = (("+", 1), ("+", 2), ("+", 3), ("-", 1), ("-", 2), ("-", 3), ("*", 3), ("*", 7))
HELD_OUT_SHARE = 16
"""One problem in this many is held out."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- 'Q: ' + message['content'] | trim + '\\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- 'A: ' + message['content'] | trim + eos_token -}}
    {%- else -%}
        {{- raise_exception("The role '" + message['role'] + "' is unknown: use 'user' and 'assistant'.") -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- 'A:' -}}
{%- endif -%}
"""
"""The tokenizer's chat template: a question becomes a problem's prompt, an answer its answer and the end token."""

NAMES = (
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jill",
    "Kai",
    "Liv",
    "Mia",
    "Noa",
    "Oto",
    "Pia",
)
THINGS = ("apples", "books", "coins", "eggs", "kites", "marbles", "pens", "shells", "stamps", "tickets")
PLACES = ("at the market", "in the garden", "at school", "by the river", "in the attic")


@dataclass(frozen=True)
class Problem:
    """A question, the whole answer text, and the number it ends in.

    Attributes:
        kind: "worked" or "mental".
        length: operations in it.
        prompt: the question; generation starts right after it.
        answer: the full answer text.
        result: the final number, as text.
        key: its numbers and operations without names: equal keys are the same sum.
    """

    kind: str
    length: int
    prompt: str
    answer: str
    result: str
    key: str

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(self.key.encode()).digest()
        return int.from_bytes(digest[:4], "big") % HELD_OUT_SHARE == 0

    def is_solved_by(self, text: str) -> bool:
        """Whether a generated answer ends in the right number."""
        words = text.replace(".", " ").split()
        return bool(words) and words[-1] == self.result


def worked_problem(rng: random.Random, length: int) -> Problem:
    """A word problem of `length` steps, each written out in the answer."""
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    value = rng.randint(3, 40)
    key = [f"worked {value}"]
    question = [f"{name} has {value} {thing}."]
    answer = [f"{name} starts with {value} {thing}."]
    for step in range(length):
        opening = ("First", "Then", "Next", "After that", "At last")[step]
        operation = rng.choice(
            ["add", "add", *(["take", "take"] if value > 9 else []), *(["times"] if value < 50 else [])]
        )
        amount = rng.randint(2, 3 if operation == "times" else 9)
        if operation == "add":
            result, sign = value + amount, "+"
            told, shown = f"{name} finds {amount} more {place}.", f"finding {amount} more"
        elif operation == "take":
            result, sign = value - amount, "-"
            told, shown = f"{name} gives away {amount}.", f"giving away {amount}"
        else:
            result, sign = value * amount, "*"
            told, shown = f"The number grows {amount} times.", f"growing {amount} times"
        question.append(told)
        answer.append(f"{opening} comes {shown}: {value} {sign} {amount} = {result}.")
        key.append(f"{sign}{amount}")
        value = result
    question.append(f"How many {thing} does {name} have?")
    answer.append(f"The answer is {value}.")
    return Problem(
        "worked", length, "Q: " + " ".join(question) + "\nA:", " " + " ".join(answer), str(value), " ".join(key)
    )


def mental_problem(rng: random.Random, length: int) -> Problem:
    """A chain of `length` operations on the last digit; the answer is only that digit.

    Sums and products do not commute, so a model cannot skip or reorder steps.
    """
    value = rng.randint(0, 9)
    words = [f"Start at {value}"]
    key = [f"mental {value}"]
    for _ in range(length):
        sign, amount = rng.choice(MENTAL_OPERATIONS)
        value = {"+": value + amount, "-": value - amount, "*": value * amount}[sign] % 10
        words.append(f"{sign} {amount}")
        key.append(f"{sign}{amount}")
    prompt = "Q: " + " ".join(words) + ". Last digit?\nA:"
    return Problem("mental", length, prompt, f" {value}.", str(value), " ".join(key))


def problems(
    seed: int, held_out: bool = False, kind: str | None = None, lengths: tuple[int, int] | None = None
) -> Iterator[Problem]:
    """An endless stream of problems of one split, the same for the same seed.

    Args:
        seed: seed of the stream.
        held_out: whether to draw from the held-out split.
        kind: "worked" or "mental"; both alternately when None.
        lengths: fewest and most operations; by default 2 to 5 for worked problems and 1 to 8 for mental ones.

    Raises:
        ValueError: `kind` is unknown.
    """
    if kind not in (None, *KINDS):
        raise ValueError(f"kind={kind!r} is unknown: use 'worked' or 'mental'.")
    rng = random.Random(seed)
    makers = {"worked": (worked_problem, (2, 5)), "mental": (mental_problem, (1, MAX_CHAIN))}
    while True:
        for each in KINDS if kind is None else (kind,):
            make, span = makers[each]
            problem = make(rng, rng.randint(*(lengths or span)))
            while problem.held_out != held_out:
                problem = make(rng, rng.randint(*(lengths or span)))
            yield problem


def problem_prompts(tokenizer, count: int, seed: int, kind: str | None = None) -> list:
    """The first held-out problems of a stream as ids, int64 [1, length] each."""
    chosen = islice(problems(seed, held_out=True, kind=kind), count)
    return [tokenizer(problem.prompt, return_tensors="pt").input_ids for problem in chosen]
