"""Tasks: where samples come from, what counts as right, and what is refused."""

import json
import string
from itertools import islice

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.task import BUNDLED, SEED, Sample, Task

ROWS = [{"question": f"What is {n} + {n}?", "answer": f"Twice {n}.\n#### {2 * n:,}"} for n in range(498, 503)]
GSM8K = {
    "prompt_template": "Q: {question}\nA:",
    "reference_column": "answer",
    "answer_pattern": r"(?:####|answer is) (-?[\d,.]*\d)",
}


def files(folder):
    """The rows in every form that is read."""
    rows = Dataset.from_list(ROWS)
    rows.to_json(folder / "rows.jsonl")
    (folder / "rows.json").write_text(json.dumps(ROWS))
    rows.to_csv(folder / "rows.csv")
    rows.to_parquet(folder / "rows.parquet")
    rows.save_to_disk(folder / "saved")
    (folder / "plain").mkdir()
    rows.to_json(folder / "plain" / "test.jsonl")
    return [folder / name for name in ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "saved", "plain")]


def test_every_form_of_data_gives_the_same_samples(tmp_path):
    expected = Task.from_dataset(Dataset.from_list(ROWS), **GSM8K).samples
    assert expected[0] == Sample("Q: What is 498 + 498?\nA:", ROWS[0]["answer"], 0)
    for path in files(tmp_path):
        assert Task.from_dataset(str(path), **GSM8K).samples == expected, path
    assert Task.from_dataset(str(path), split="test[:2]", **GSM8K).samples == expected[:2]
    assert Task.from_dataset(str(path), count=3, **GSM8K).samples == expected[:3]


def test_a_split_is_named_where_there_are_several(tmp_path):
    rows = Dataset.from_list(ROWS)
    DatasetDict(train=rows, test=rows.select([0])).save_to_disk(tmp_path / "saved")
    assert len(Task.from_dataset(str(tmp_path / "saved"), split="test", **GSM8K).samples) == 1
    for split, message in ((None, "train, test"), ("tset", "did you mean 'test'")):
        with pytest.raises(ValueError, match=message):
            Task.from_dataset(str(tmp_path / "saved"), split=split, **GSM8K)


def test_what_is_right():
    task = Task.from_dataset(Dataset.from_list(ROWS), **GSM8K)
    sample = task.samples[2]
    assert sample.reference.endswith("1,000")
    for text in ("The answer is 1000.", "so #### 1,000\n#### 7", "answer is 1000.0"):
        assert task.is_right(sample, text), text
    for text in ("1000", "answer is 100", "answer is -1000", "", "answer is 10,00"):
        assert not task.is_right(sample, text), text
    whole = Task("words", [Sample("Say it.", "yes", 0)])
    assert whole.is_right(whole.samples[0], " yes\n") and not whole.is_right(whole.samples[0], "yes.")
    with pytest.raises(ValueError, match="no reference"):
        Task("words", [Sample("Say it.", None, 0)]).is_right(Sample("Say it.", None, 0), "yes")


@given(st.text(st.sampled_from(string.digits + string.ascii_lowercase + " .\n"), max_size=12))
def test_problems_are_judged_as_they_judge_themselves(text):
    """But for numbers written in another way, which are right here: "07" is 7."""
    problem = next(problems(SEED, held_out=True, kind="mental"))
    task = Task.from_problems("mental", 1)
    words = text.replace(".", " ").split()
    spelled = words[-1].lstrip("0") or "0" if words and words[-1].isdigit() else ""
    assert task.is_right(task.samples[0], text) == (problem.is_solved_by(text) or spelled == problem.result)


def test_bundled_tasks():
    chosen = list(islice(problems(SEED, held_out=True), 8))
    task = Task.bundled("problems", 8)
    assert [sample.prompt for sample in task.samples] == [problem.prompt for problem in chosen]
    assert all(task.is_right(sample, problem.answer) for sample, problem in zip(task.samples, chosen, strict=True))
    for name in BUNDLED:
        assert Task.bundled(name, 4) == Task.bundled(name, 4)
        assert len({sample.prompt for sample in Task.bundled(name, 4).samples}) == 4
    assert not Task.bundled("python-source", 2).is_judged


@given(st.integers(2, 30), st.floats(0.01, 0.99), st.integers(0, 5))
def test_a_split_loses_and_repeats_nothing(count, share, seed):
    task = Task("numbers", [Sample(f"{n}?", str(n), n) for n in range(count)])
    first, second = task.split(share, seed)
    assert first.samples and second.samples
    assert sorted(first.samples + second.samples, key=lambda sample: sample.index) == list(task.samples)
    assert (first, second) == task.split(share, seed)
    assert first.describe()["content"] != second.describe()["content"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_template": "{qestion}"}, "did you mean 'question'"),
        ({"reference_column": "label"}, "known: answer, question"),
        ({"prompt_template": "Q:"}, "names no column"),
        ({"prompt_template": "{question.upper}"}, "not the name of a column"),
        ({"prompt_template": "{question"}, "not a template"),
        ({"answer_pattern": "#### (.*"}, "not a regular expression"),
        ({"answer_pattern": "####"}, "no group"),
        ({"count": 0}, "count=0"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        Task.from_dataset(Dataset.from_list(ROWS), **GSM8K | change)


def test_bad_data(tmp_path):
    rows = {"question": ["One?", None], "answer": ["1", "2"]}
    with pytest.raises(ValueError, match="Row 1 of dataset has no value in column 'question'"):
        Task.from_dataset(Dataset.from_dict(rows), **GSM8K)
    with pytest.raises(ValueError, match="empty prompt"):
        Task.from_dataset(Dataset.from_dict({"prompt": [" "]}))
    with pytest.raises(ValueError, match="no rows"):
        Task.from_dataset(Dataset.from_dict({"prompt": []}))
    broken = {"torn.jsonl": '{"question": "One', "torn.parquet": "PAR1", "empty.csv": "", "notes.txt": "prompt\nOne?"}
    for name, text in broken.items():
        (tmp_path / name).write_text(text)
    for name in (*broken, "missing.json", "nowhere/at-all"):
        with pytest.raises(ValueError, match=name):
            Task.from_dataset(str(tmp_path / name) if "/" not in name else name)
    with pytest.raises(ValueError, match="Unknown split"):
        files(tmp_path)
        Task.from_dataset(str(tmp_path / "rows.jsonl"), split="test", **GSM8K)
