"""Batch jobs: every row has the text it would have alone, once, however often the job was stopped."""

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from datasets import Dataset, load_dataset

from hf_diffusion_forcing.evaluation.journal import Journal
from hf_diffusion_forcing.jobs.finished_rows import FinishedRows
from hf_diffusion_forcing.jobs.map_dataset import map_dataset
from hf_diffusion_forcing.jobs.output_file import OutputFile
from support.commands import run

SETTINGS = {"sampler_preset": "fast", "num_steps": 8, "state_scale": 1.0, "do_sample": True, "max_new_tokens": 12}
COMMAND = ["--preset", "fast", "--num-steps", "8", "--state-scale", "1.0", "--do-sample", "--max-new-tokens", "12"]
COMMAND += ["--seed", "3", "--max-batch-size", "3", "--prompt-template", "Q: {question}\\nA:"]


def questions(count):
    starts = itertools.product(range(2, 9), ("+", "-", "*"), range(2, 9))
    return [
        {"id": f"q{number}", "question": f"Start at {a} {sign} {b}. Last digit?"}
        for number, (a, sign, b) in enumerate(itertools.islice(starts, count))
    ]


@pytest.fixture(scope="module")
def rows():
    return Dataset.from_list(questions(7))


@pytest.fixture(scope="module")
def alone(bundled, rows):
    """What `generate()` writes for each prompt alone."""
    model, tokenizer = bundled
    texts = []
    for number, row in enumerate(rows):
        inputs = tokenizer(f"Q: {row['question']}\nA:", return_tensors="pt")
        ids = model.generate(**inputs, **SETTINGS, seed=3 + number)[0, inputs.input_ids.shape[1] :]
        texts.append((tokenizer.decode(ids, skip_special_tokens=True), len(ids)))
    return texts


def job(bundled, rows, output, **more):
    call = {"prompt_template": "Q: {question}\nA:", "seed": 3, "max_batch_size": 3, "progress": False}
    return map_dataset(*bundled, rows, output, **SETTINGS | call | more)


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def texts(path):
    return [(row["output"], row["output_tokens"]) for row in lines(path)]


def test_every_row_has_the_text_it_has_alone(bundled, rows, alone, tmp_path):
    result = job(bundled, rows, tmp_path / "out.jsonl", keep_seed=True, keep_logprobs=True)
    written = lines(tmp_path / "out.jsonl")
    assert texts(tmp_path / "out.jsonl") == alone
    assert [{name: row[name] for name in ("id", "question")} for row in written] == list(rows)
    assert [row["output_seed"] for row in written] == list(range(3, 10))
    for row in written:
        assert len(row["output_logprobs"]) == row["output_tokens"] and max(row["output_logprobs"]) <= 0
        assert row["output_error"] is None
        assert row["output_finish_reason"] == ("length" if row["output_tokens"] == 12 else "stop")
    assert (result.rows, result.decoded, result.failed) == (7, 7, 0)
    assert result.tokens == sum(count for _, count in alone) and result.tokens_per_second > 0
    again = job(bundled, rows, tmp_path / "out.jsonl", keep_seed=True, keep_logprobs=True)
    assert (again.decoded, again.tokens, lines(tmp_path / "out.jsonl")) == (0, 0, written)


def test_parquet_keeps_types(bundled, tmp_path):
    rows = Dataset.from_dict({"prompt": ["Q: 1", "Q: 2"], "data": [b"\x00", None], "tags": [["a"], []]})
    job(bundled, rows, tmp_path / "out.parquet", prompt_template=None, output_column="new", max_new_tokens=2)
    read = load_dataset("parquet", data_files=str(tmp_path / "out.parquet"), split="train")
    assert read.features.items() >= rows.features.items()
    assert read.select_columns(rows.column_names).to_list() == rows.to_list()
    assert read["new_tokens"] == [2, 2] and all(isinstance(text, str) for text in read["new"])
    assert read.column_names == [*rows.column_names, "new", "new_tokens", "new_finish_reason", "new_error"]


@pytest.mark.parametrize("torn", [False, True])
def test_a_job_goes_on_where_it_stopped(bundled, rows, alone, tmp_path, monkeypatch, torn):
    """By Ctrl+C, and with the last record cut off as by a loss of power."""
    output = tmp_path / "out.jsonl"
    journal = tmp_path / "out.jsonl.journal/journal-0.jsonl"

    append, written = Journal.append, []

    def interrupted(self, *records):
        """Ctrl+C after the second record, however many are written at once."""
        records = records[: 2 - len(written)]
        written.extend(records)
        append(self, *records)
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", interrupted)
        with pytest.raises(
            KeyboardInterrupt, match=r"Interrupted. 2 of 7 rows are finished and kept in .*run the same"
        ):
            job(bundled, rows, output, max_batch_size=1)
    assert not output.exists()
    kept = journal.read_bytes()
    if torn:
        journal.write_bytes(kept[: kept.rfind(b"\n", 0, -1) + 20])
    complete = kept.count(b"\n") - torn
    assert complete == 2 - torn
    result = job(bundled, rows, output)
    assert texts(output) == alone and result.decoded == 7 - complete
    assert sorted(record["row"] for record in lines(journal)) == list(range(7))


def test_another_job_is_refused_by_name(bundled, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    few = {"max_new_tokens": 2}
    job(bundled, rows, output, **few)
    before = output.read_bytes()
    for more, message in (
        ({"seed": 4}, "seed=3, where this one has 4"),
        ({"same_seed": True}, "same_seed=False"),
        ({"temperature": 0.5}, r"settings\.temperature=1\.0, where this one has 0\.5"),
        ({"wavefront": 4}, r"settings\.sampler_config\.wavefront=32, where this one has 4"),
        ({"prompt_template": "{question}"}, r"dataset\.prompt_template"),
        ({"count": 3}, r"dataset\.rows=7, where this one has 3"),
        ({"keep_logprobs": True}, "logprobs=False"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            job(bundled, rows, output, **few | more)
        assert "--overwrite" in str(refused.value)
    other = Dataset.from_list(questions(8)[1:])
    with pytest.raises(ValueError, match=r"dataset\.content"):
        job(bundled, other, output, **few)
    assert output.read_bytes() == before
    job(bundled, other, output, overwrite=True, **few)
    assert [row["id"] for row in lines(output)] == [f"q{number}" for number in range(1, 8)]
    mine = tmp_path / "mine.jsonl"
    mine.write_text("mine")
    with pytest.raises(ValueError, match="exists, and not from a job that could be resumed"):
        job(bundled, rows, mine, **few)
    assert mine.read_text() == "mine"


def test_a_second_job_for_one_output_is_refused(bundled, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    with OutputFile.of(output, "output", False, False).locked():
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=r"Another job is writing .*out\.jsonl: wait until it has ended"):
                job(bundled, rows, output, max_new_tokens=2, overwrite=overwrite)
        assert not Path(f"{output}.journal").exists()
        assert job(bundled, rows, tmp_path / "other.jsonl", max_new_tokens=2).decoded == 7
    assert job(bundled, rows, output, max_new_tokens=2).decoded == 7


BAD = ["Q: 1", "", None, "Q: 2 " * 3000, "Q: 3"]


def test_an_error_is_that_of_its_row(bundled, tmp_path):
    rows = Dataset.from_dict({"prompt": BAD})
    few = {"prompt_template": None, "max_new_tokens": 3}
    result = job(bundled, rows, tmp_path / "out.jsonl", **few)
    written = lines(tmp_path / "out.jsonl")
    assert result.failed == 3 and [row["prompt"] for row in written] == BAD
    errors = [row["output_error"] for row in written]
    assert errors[0] is errors[4] is None
    assert errors[1:3] == ["Row 1: The prompt is empty.", "Row 2: Column 'prompt' has no value."]
    assert errors[3].startswith("Row 3: A prompt of ") and "exceeds the context of 4096" in errors[3]
    for row, error in zip(written, errors, strict=True):
        assert (row["output"] is None) == (error is not None) == (row["output_finish_reason"] == "error")
        assert row["output_tokens"] == (0 if error else 3)
    assert job(bundled, rows, tmp_path / "out.jsonl", **few).decoded == 3, "they are tried again"
    with pytest.raises(ValueError, match="Row 1: The prompt is empty"):
        job(bundled, rows, tmp_path / "strict.jsonl", strict=True, **few)
    assert not (tmp_path / "strict.jsonl").exists()


def test_chats(bundled, tmp_path):
    """Messages are read through the tokenizer's chat template; a text is a question of the user."""
    model, tokenizer = bundled
    chat = [{"role": "user", "content": "Start at 2 + 3. Last digit?"}]
    several = [*chat, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 3 + 3?"}]
    rows = Dataset.from_dict({"messages": [chat, several, [{"role": "system", "content": "Be brief."}], []]})
    call = {"prompt_template": None, "chat_column": "messages", "do_sample": False}
    job(bundled, rows, tmp_path / "out.jsonl", **call)
    written = lines(tmp_path / "out.jsonl")
    for number, messages in enumerate((chat, several)):
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        ids = model.generate(**inputs, **SETTINGS | {"do_sample": False}, seed=3 + number)
        new = ids[0, inputs["input_ids"].shape[1] :]
        assert written[number]["output"] == tokenizer.decode(new, skip_special_tokens=True)
    assert "The role 'system' is unknown" in written[2]["output_error"]
    assert "has no messages" in written[3]["output_error"]
    plain = Dataset.from_dict({"question": [chat[0]["content"]]})
    job(bundled, plain, tmp_path / "plain.jsonl", **call | {"chat_column": "question"})
    assert texts(tmp_path / "plain.jsonl") == texts(tmp_path / "out.jsonl")[:1]


def test_stops_and_equal_seeds(bundled, tmp_path):
    """With one seed for all, equal prompts have equal texts, and a common beginning is read once."""
    rows = Dataset.from_dict({"prompt": ["Q: Start at 7 + 3 * 3. Last digit?\nA:"] * 3})
    call = {"prompt_template": None, "same_seed": True, "sampler_preset": None, "max_new_tokens": 40}
    call |= {"sampler": "autoregressive", "stop_strings": ["."], "do_sample": False, "keep_seed": True}
    assert job(bundled, rows, tmp_path / "out.jsonl", **call).prefix_hit_rate > 0.5
    written = lines(tmp_path / "out.jsonl")
    assert len(set(texts(tmp_path / "out.jsonl"))) == 1 and {row["output_seed"] for row in written} == {3}
    assert written[0]["output"].endswith(".") and written[0]["output_finish_reason"] == "stop"
    exactly = call | {"max_new_tokens": written[0]["output_tokens"]}
    job(bundled, rows, tmp_path / "exact.jsonl", **exactly)
    assert {row["output_finish_reason"] for row in lines(tmp_path / "exact.jsonl")} == {"stop"}
    different = job(bundled, rows, tmp_path / "different.jsonl", **call | {"same_seed": False})
    assert different.prefix_hit_rate == 0


def test_the_later_record_of_a_failed_row_counts(tmp_path):
    journal = Journal(tmp_path / "run", {})
    journal.begin()
    journal.open(0)
    journal.append({"row": 1, "error": "no"}, {"row": 0, "error": None, "text": "a"})
    journal.close()
    journal.open(1)
    journal.append({"row": 1, "error": None, "text": "b"}, {"row": 2, "error": "no"})
    journal.append({"row": 0, "error": "no"})
    journal.close()
    for paths in (journal.files(), journal.files()[::-1]):
        with FinishedRows(paths) as finished:
            assert sorted(finished) == [0, 1, 2] and finished.failed == {2}
            assert (finished[0]["text"], finished[1]["text"]) == ("a", "b")


# --- the command ---


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions(7)))
    return path


def test_the_command(data, alone, tmp_path):
    output = tmp_path / "out.jsonl"
    result = run("map", data, *COMMAND, "--output", output)
    assert result.exit_code == 0, result.output
    assert texts(output) == alone and "7 rows are in" in result.stdout and result.stderr == ""
    quiet = run("map", data, *COMMAND, "--output", output, "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert json.loads(run("map", data, *COMMAND, "--output", output, "--json").stdout)["decoded"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "{folder}/out.txt"], "end it in .jsonl or .parquet"),
        (["--output", "{folder}/none/out.jsonl"], "there is no folder"),
        (["--prompt-column", "qestion"], "did you mean 'question'"),
        (["--prompt-column", "question", "--chat-column", "id"], "several sources"),
        (["--prompt-template", "none"], "names no column"),
        (["--prompt-column", "question", "--output-column", ""], "output_column is empty"),
        (["--prompt-column", "question", "--preset", "slow"], "sampler_preset='slow' is unknown"),
        (["--prompt-column", "question", "--max-new-tokens", "9999"], "Use max_new_tokens <="),
        (["--prompt-column", "question", "--max-cache-bytes", "10"], "Row 0: Request 0 needs"),
        (["--prompt-column", "question", "--temperature", "0.5"], "add --do-sample"),
    ],
)
def test_what_is_wrong_is_said_before_a_row_is_decoded(data, tmp_path, arguments, message):
    arguments = [word.format(folder=tmp_path) for word in arguments]
    output = [] if "--output" in arguments else ["--output", tmp_path / "out.jsonl"]
    result = run("map", data, *arguments, *output, "--strict")
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not (tmp_path / "out.jsonl").exists()


def test_a_column_or_bytes_that_cannot_be_written(bundled, tmp_path):
    with pytest.raises(ValueError, match="has a column 'output_error' already"):
        job(bundled, Dataset.from_dict({"question": ["a"], "output_error": ["b"]}), tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="'data' holds bytes"):
        job(bundled, Dataset.from_dict({"question": ["a"], "data": [[b"b"]]}), tmp_path / "out.jsonl")
    with pytest.raises(TypeError, match="dataset is a list"):
        job(bundled, [{"question": "a"}], tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


def launch(processes, data, output):
    """The command in processes of its own; slow enough to be stopped in the middle."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "hf_diffusion_forcing", "map", str(data), *COMMAND, "--max-batch-size", "1", "--output"]
    return subprocess.Popen([*command, str(output)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")


def records(output):
    with FinishedRows(Path(f"{output}.journal").glob("journal-*.jsonl")) as finished:
        return {row: finished[row] for row in finished}


def kill(process):
    """SIGKILL a launched job and all of its processes."""
    workers = psutil.Process(process.pid).children(recursive=True)
    for each in (*workers, process):
        each.kill()
    psutil.wait_procs(workers)
    process.communicate()


def wait_for_records(process, output, count=1):
    deadline = time.monotonic() + 200
    while len(records(output)) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def many(bundled, tmp_path_factory):
    """60 questions, and the output of a job that nobody stopped."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions(60)))
    job(bundled, Dataset.from_list(questions(60)), folder / "whole.jsonl")
    return folder / "questions.jsonl", (folder / "whole.jsonl").read_bytes()


@pytest.mark.full
def test_killed_and_resumed(many, tmp_path):
    """SIGKILL, then SIGTERM, then to the end: no row is lost, and none is decoded twice."""
    data, whole = many
    output = tmp_path / "out.jsonl"
    process = launch(1, data, output)
    wait_for_records(process, output)
    process.kill()
    process.communicate()
    killed = records(output)
    assert 0 < len(killed) < 60 and not output.exists()

    process = launch(1, data, output)
    wait_for_records(process, output, len(killed) + 1)
    process.terminate()
    _, said = process.communicate(timeout=100)
    stopped = records(output)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert f"{len(stopped)} of 60 rows are finished" in said
    assert len(killed) < len(stopped) < 60 and stopped.items() >= killed.items()

    process = launch(1, data, output)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert output.read_bytes() == whole
    (journal,) = Path(f"{output}.journal").glob("journal-*")
    assert len([line for line in journal.read_bytes().splitlines() if line.endswith(b"}")]) == 60


@pytest.mark.full
@pytest.mark.parametrize("processes", [1, 2])
def test_another_process_is_refused_until_the_job_is_killed(many, bundled, tmp_path, processes):
    data, whole = many
    output, dataset = tmp_path / "out.jsonl", Dataset.from_list(questions(60))
    process = launch(processes, data, output)
    wait_for_records(process, output)
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="Another job is writing"):
            job(bundled, dataset, output, overwrite=overwrite)
    kill(process)
    killed = records(output)
    assert 0 < len(killed) < 60 and not output.exists()
    assert job(bundled, dataset, output).decoded == 60 - len(killed)
    assert output.read_bytes() == whole


@pytest.mark.full
def test_two_processes_killed_and_resumed(many, tmp_path):
    """By two, and then by one, with the output of one that nobody stopped."""
    data, whole = many
    output = tmp_path / "out.jsonl"
    process = launch(2, data, output)
    wait_for_records(process, output, 3)
    kill(process)
    killed = records(output)
    assert 0 < len(killed) < 60 and not output.exists()
    copy = tmp_path / "copy.jsonl"
    Path(f"{copy}.journal").mkdir()
    for path in Path(f"{output}.journal").iterdir():
        (Path(f"{copy}.journal") / path.name).write_bytes(path.read_bytes())
    for processes, path in ((2, output), (1, copy)):
        process = launch(processes, data, path)
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
        assert path.read_bytes() == whole and records(path).items() >= killed.items()
    assert len(list(Path(f"{output}.journal").glob("journal-*.jsonl"))) == 2
