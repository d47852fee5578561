"""The problems are right, and the held-out ones really are."""

import re
import statistics
from itertools import islice

import pytest

from hf_diffusion_forcing.evaluation.problems import KINDS, problems


def take(count, **kwargs):
    return list(islice(problems(**kwargs), count))


def test_the_splits_share_no_sum():
    """Checked on what the streams yield, by the numbers and operations alone."""
    training = take(30_000, seed=0)
    held_out = take(3_000, seed=1, held_out=True)
    assert len({p.key for p in held_out}) > 1000
    assert not {p.key for p in training} & {p.key for p in held_out}
    assert not {p.prompt for p in training} & {p.prompt for p in held_out}


@pytest.mark.parametrize("held_out", [False, True])
def test_every_step_of_a_worked_answer_is_true(held_out):
    for problem in take(300, seed=2, held_out=held_out, kind="worked"):
        steps = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", problem.answer)
        assert len(steps) == problem.length
        value = re.search(r"has (\d+)", problem.prompt)[1]
        for left, sign, right, result in steps:
            assert left == value
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign] == int(
                result
            )
            value = result
        assert value == problem.result
        assert problem.is_solved_by(problem.answer)


def test_mental_results_are_the_last_digit_of_the_chain():
    for problem in take(300, seed=3, kind="mental"):
        first, *operations = re.findall(r"(?:at|[+*-]) \d+", problem.prompt)
        value = int(first.split()[1])
        for operation in operations:
            sign, amount = operation.split()
            value = {"+": value + int(amount), "-": value - int(amount), "*": value * int(amount)}[sign] % 10
        assert len(operations) == problem.length <= 8
        assert str(value) == problem.result
        assert problem.is_solved_by(problem.answer)


def test_answers_are_long_and_both_kinds_come_in_turn():
    some = take(400, seed=4)
    assert [p.kind for p in some[:4]] == [*KINDS, *KINDS]
    assert statistics.median(len(p.answer) for p in some if p.kind == "worked") >= 120


def test_a_wrong_or_missing_number_is_no_solution():
    problem = take(1, seed=5, kind="mental")[0]
    assert not problem.is_solved_by("")
    assert not problem.is_solved_by(f" {(int(problem.result) + 1) % 10}.")


def test_streams_repeat_and_refuse_unknown_kinds():
    assert take(20, seed=6) == take(20, seed=6) != take(20, seed=7)
    with pytest.raises(ValueError, match="'oral'"):
        next(problems(0, kind="oral"))
