"""The search for settings: its choices exactly, on made-up measurements; its parts and the command on real ones."""

import json
from itertools import count

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_diffusion_forcing import DiffusionForcingConfig, bundled_checkpoint
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation.candidates import (
    SEARCH_SPACE,
    check_space,
    choose_candidates,
    parse_space,
    spelling,
)
from hf_diffusion_forcing.evaluation.halving import Budget, Halving, Measurement, Trial, plan_rungs
from hf_diffusion_forcing.evaluation.task import Sample, Task
from hf_diffusion_forcing.evaluation.tuning import trials_for, tune
from hf_diffusion_forcing.generation.output import DiffusionForcingOutput
from hf_diffusion_forcing.settings.spelling import parse_sampler
from support import FAMILIES, ROOT

BASELINE = {"sampler": "autoregressive"}
FORCING = {"sampler": "diffusion_forcing"}
TASK = Task("digits", [Sample(f"{index}?", str(index), index) for index in range(48)])


def made_up(speeds, wrong=None, clock=None):
    """A measurement in which time and answers are given: tokens a second and the wrong samples, by sampler.

    Args:
        speeds: tokens a second by spelling.
        wrong: by spelling, the indices it answers wrongly.
        clock: a list of seconds that the calls add to.
    """
    seen = []

    def measure(samples, kwargs):
        name = spelling(kwargs)
        seen.append((name, [sample.index for sample in samples]))
        texts = ["no" if s.index in (wrong or {}).get(name, ()) else s.reference for s in samples]
        seconds = 10 * len(samples) / speeds[name]
        if clock is not None:
            clock.append(seconds)
        tokens = [[s.index] * 9 + [0 if text == "no" else 1] for s, text in zip(samples, texts, strict=True)]
        return {"texts": texts, "tokens": tokens, "seconds": seconds, "core_passes": 9, "recurrences": 9}

    measure.seen = seen
    return measure


def trials(*wavefronts):
    return [Trial(spelling(kwargs), kwargs) for kwargs in (FORCING | {"wavefront": each} for each in wavefronts)]


def speeds_of(candidates, *values):
    return {"autoregressive": 1.0} | {trial.name: value for trial, value in zip(candidates, values, strict=True)}


# --- the choice ---


def test_the_fastest_that_keeps_the_budget_wins():
    """One that is faster and loses answers is dropped, whatever its speed."""
    candidates = trials(1, 2, 3, 4)
    right, left = TASK.split(0.5, 0)
    losing = {candidates[3].name: range(0, 48, 2)}
    halving = Halving(candidates, right, made_up(speeds_of(candidates, 2, 3, 5, 9), losing), BASELINE, Budget(0.5))
    finalists = halving.search()
    assert finalists[0] is candidates[2]
    assert candidates[3] not in finalists and not candidates[3].finalist
    halving.confirm(left, finalists[:1])
    assert finalists[0].confirmation.speedup == pytest.approx(5)
    assert halving.budget.keeps(finalists[0].confirmation)


def test_more_may_be_lost_where_the_budget_says_so():
    candidates = trials(1, 2)
    losing = {candidates[1].name: range(0, 48, 4)}
    measure = made_up(speeds_of(candidates, 2, 9), losing)
    for points, winner in ((0.5, candidates[0]), (30.0, candidates[1])):
        fresh = trials(1, 2)
        finalists = Halving(fresh, TASK, measure, BASELINE, Budget(points)).search()
        assert finalists[0].name == winner.name


def test_a_candidate_that_only_luck_could_have_hurt_stays():
    """Two losses in a hundred do not show a loss of more than half a point; ten do; gains count against losses."""

    def measured(losses, gains):
        both = [(False, True)] * losses + [(True, False)] * gains
        both += [(True, True)] * (100 - len(both))
        return Measurement(right=[mine for mine, _ in both], base_right=[his for _, his in both], base_tokens=1)

    budget = Budget(0.5)
    assert budget.may_keep(measured(2, 0)) and not budget.keeps(measured(2, 0))
    assert not budget.may_keep(measured(10, 0))
    assert budget.may_keep(measured(10, 8)) and not budget.keeps(measured(10, 8))
    assert budget.may_keep(measured(0, 10)) and budget.keeps(measured(0, 10))
    assert Budget(12.0).may_keep(measured(10, 0))
    assert Budget(10.0).keeps(measured(10, 0)) and not Budget(9.9).keeps(measured(10, 0))


def test_equal_tokens_have_a_budget_of_their_own():
    base = {"texts": ["a"], "tokens": [[1, 2, 3, 4]], "seconds": 1.0, "core_passes": 3}
    run = base | {"tokens": [[1, 2, 9, 4, 5]]}
    measured = Measurement()
    measured.add(Task("free", [Sample("x", None, 0)]), (Sample("x", None, 0),), run, base)
    assert measured.token_agreement == 0.75 and measured.loss is None
    assert measured.speedup == 1.25
    assert Budget(min_token_agreement=0.75).keeps(measured)
    assert not Budget(min_token_agreement=0.76).keeps(measured)
    assert not Budget(min_token_agreement=0.76).may_keep(measured)


def test_rungs_have_fewer_candidates_and_more_samples():
    assert plan_rungs(32, 54, 3) == [(32, 4), (11, 6), (4, 18), (3, 54)]
    assert plan_rungs(3, 10, 3) == [(3, 10)]
    assert plan_rungs(1, 4, 3) == [(1, 4)]
    candidates = trials(*range(1, 10))
    measure = made_up(speeds_of(candidates, *range(1, 10)))
    finalists = Halving(candidates, TASK, measure, BASELINE, Budget(), finalists=1).search()
    assert [len(trial.calibration.samples) for trial in candidates] == [5, 5, 5, 5, 5, 5, 16, 16, 48]
    assert finalists == [candidates[-1]]


def test_candidates_stand_beside_the_baseline_batch_by_batch():
    """A machine that slows down slows all of them: what counts is the ratio within a batch."""
    candidates = trials(1, 2)
    speeds = speeds_of(candidates, 3, 2)
    steady = made_up(speeds)
    loads = count(1)

    def measure(samples, kwargs):
        """Every batch finds the machine busier than the one before."""
        measure.load = next(loads) if kwargs == BASELINE else measure.load
        run = steady(samples, kwargs)
        return run | {"seconds": run["seconds"] * measure.load}

    halving = Halving(candidates, TASK, measure, BASELINE, Budget(), batch_size=4)
    halving.search()
    names = [name for name, _ in steady.seen]
    assert names == ["autoregressive", candidates[0].name, candidates[1].name] * 12
    assert [trial.calibration.speedup for trial in candidates] == pytest.approx([3, 2])


# --- tune() with made-up measurements ---


@pytest.fixture(scope="module")
def loaded():
    path = bundled_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    return AutoModelForCausalLM.from_pretrained(path).eval(), tokenizer


SPACE = {"diffusion_forcing": {"inner_recurrence": [1, 2, 4]}}
NAMES = [f"diffusion_forcing:inner_recurrence={each}" for each in (1, 2, 4)]
SPEEDS = {
    "autoregressive": 1.0,
    **dict(zip(NAMES, (8.0, 5.0, 3.0), strict=True)),
    "diffusion_forcing:wavefront=32,inner_recurrence=4,exit_threshold=0.03": 3.0,
    "diffusion_forcing:wavefront=32,inner_recurrence=2,exit_threshold=0.03,adaptive_prefill=true": 5.0,
    "diffusion_forcing:wavefront=32,inner_recurrence=1,exit_threshold=0.03,adaptive_prefill=true": 8.0,
    'diffusion_forcing:wavefront="auto",exit_threshold=0.03,adaptive_prefill=true': 7.0,
    "speculative_wavefront": 4.0,
}


def test_nothing_is_chosen_on_the_samples_that_are_reported(loaded):
    """The two parts share no sample; what fails on the second is not chosen, and is not searched for again."""
    calibration, confirmation = TASK.split(0.5, 0)
    of_search = {sample.index for sample in calibration.samples}
    of_report = {sample.index for sample in confirmation.samples}
    assert not of_search & of_report and len(of_search | of_report) == 48
    measure = made_up(SPEEDS, {NAMES[0]: of_report})
    result = tune(*loaded, TASK, space=SPACE, measure=measure, progress=False)
    assert result.best.name == NAMES[1]
    assert result.trials[0].confirmation.accuracy in (0.0, 1.0)
    by_name = {trial.name: trial for trial in result.trials}
    assert by_name[NAMES[0]].calibration.accuracy == 1.0 and by_name[NAMES[0]].confirmation.accuracy == 0.0
    for trial in (*result.trials, *result.presets):
        assert set(trial.calibration.samples) <= of_search
        assert set(trial.confirmation.samples) <= of_report
    searched = [set(indices) for _, indices in measure.seen]
    first_report = next(place for place, indices in enumerate(searched) if indices & of_report)
    assert all(indices <= of_search for indices in searched[:first_report])
    assert all(indices <= of_report for indices in searched[first_report:])
    assert result.generation_settings == {"sampler": "diffusion_forcing", "sampler_config": {"inner_recurrence": 2}}


def test_the_same_search_twice_finds_the_same(loaded):
    results = [tune(*loaded, TASK, space=SPACE, measure=made_up(SPEEDS), progress=False) for _ in range(2)]
    first, second = ({**r.to_dict(), "settings": {**r.settings, "seconds": 0}} for r in results)
    assert first == second
    assert results[0].best.name == NAMES[0]


def test_none_is_found_where_all_lose(loaded):
    measure = made_up(SPEEDS, dict.fromkeys(NAMES, range(48)))
    result = tune(*loaded, TASK, space=SPACE, measure=measure, progress=False)
    assert result.best is None and "No candidate kept within the budget" in result.outcome
    with pytest.raises(ValueError, match="No settings were confirmed"):
        result.save("anywhere", *loaded)


@pytest.mark.parametrize("interrupted_at", [5, 150, 200, 260])
def test_an_interrupt_keeps_what_has_been_confirmed(loaded, interrupted_at):
    """24 samples for 3 candidates and the baseline are 96 calls; then 48 calls confirm each finalist in turn."""
    calls, steady = count(1), made_up(SPEEDS)

    def measure(samples, kwargs):
        if next(calls) == interrupted_at:
            raise KeyboardInterrupt
        return steady(samples, kwargs)

    result = tune(*loaded, TASK, space=SPACE, measure=measure, progress=False)
    assert result.stopped == "interrupt"
    confirmed = [bool(trial.confirmation.samples) for trial in sorted(result.trials, key=lambda t: -SPEEDS[t.name])]
    assert confirmed == {5: [0, 0, 0], 150: [1, 0, 0], 200: [1, 1, 0], 260: [1, 1, 1]}[interrupted_at]
    if interrupted_at == 5:
        assert result.best is None and "stopped before any settings were confirmed" in result.outcome
    else:
        assert result.best.name == NAMES[0] and len(result.best.confirmation.samples) == 24


@pytest.mark.parametrize(("minutes", "found"), [(60, True), (12, True), (9, True), (1, False)])
def test_the_time_is_kept_and_leaves_room_to_confirm(loaded, minutes, found):
    """The baseline takes 10 s a sample, so 4 minutes for 24 samples: the search is cut short, not the confirmation."""
    spent = []
    result = tune(
        *loaded,
        TASK,
        space=SPACE,
        minutes=minutes,
        measure=made_up(SPEEDS, clock=spent),
        clock=lambda: sum(spent),
        progress=False,
    )
    assert sum(spent) <= 60 * minutes + 20
    assert (result.best is not None) == found
    assert result.stopped == (None if minutes == 60 else "time")


def test_settings_that_are_stored_do_not_mix_with_candidates(loaded):
    model, tokenizer = loaded
    model.generation_config.sampler = "diffusion_forcing"
    model.generation_config.sampler_config = {"wavefront": 4}
    seen = []

    def measure(samples, kwargs):
        seen.append(model.generation_config.names_sampler)
        return made_up(SPEEDS)(samples, kwargs)

    try:
        tune(model, tokenizer, TASK, space=SPACE, measure=measure, progress=False)
        assert not any(seen)
        assert model.generation_config.sampler_config == {"wavefront": 4}
    finally:
        del model.generation_config.sampler, model.generation_config.sampler_config


# --- candidates ---


def test_candidates_are_different_and_begin_with_the_first():
    presets = [FORCING | {"inner_recurrence": 1}]
    chosen = choose_candidates(SEARCH_SPACE, 40, 0, spelling, presets)
    assert chosen[0] == presets[0] and len({spelling(kwargs) for kwargs in chosen}) == len(chosen) == 40
    assert {kwargs["sampler"] for kwargs in chosen} == set(SEARCH_SPACE)
    assert chosen == choose_candidates(SEARCH_SPACE, 40, 0, spelling, presets)
    assert chosen != choose_candidates(SEARCH_SPACE, 40, 1, spelling, presets)
    many = choose_candidates(SEARCH_SPACE, 400, 0, spelling)
    default = DiffusionForcingConfig().to_dict()
    for name, values in SEARCH_SPACE["diffusion_forcing"].items():
        drawn = [kwargs for kwargs in many if kwargs["sampler"] == "diffusion_forcing"]
        assert {kwargs.get(name, default[name]) for kwargs in drawn} >= set(values)


def test_a_small_space_is_tried_as_a_whole():
    space = {"diffusion_forcing": {"inner_recurrence": [1, 2], "wavefront": [8, 16], "headway": [1, 2]}}
    assert len(choose_candidates(space, 99, 0, spelling)) == 8


def test_candidates_are_spelled_as_they_are_read():
    kwargs = FORCING | {"inner_recurrence": 2, "adaptive_prefill": True, "exit_criterion": {"name": "kl"}}
    assert parse_sampler(spelling(kwargs)) == kwargs
    assert parse_space(["diffusion_forcing:wavefront=[8, 16],headway=[1]", "adaptive:exit_threshold=[0.1]"]) == {
        "diffusion_forcing": {"wavefront": [8, 16], "headway": [1]},
        "adaptive": {"exit_threshold": [0.1]},
    }


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "empty"),
        ({"diffusion": {"wavefront": [1]}}, "did you mean 'diffusion_forcing'"),
        ({"diffusion_forcing": {}}, "names no setting"),
        ({"diffusion_forcing": {"wavefont": [8]}}, "did you mean 'wavefront'"),
        ({"diffusion_forcing": {"draft_depth": [8]}}, "draft_depth"),
        ({"diffusion_forcing": {"num_steps": [8]}}, "num_steps"),
        ({"diffusion_forcing": {"wavefront": 8}}, "list of values for wavefront"),
        ({"diffusion_forcing": {"wavefront": []}}, "list of values for wavefront"),
        ({"diffusion_forcing": {"wavefront": [0]}}, "wavefront=0"),
    ],
)
def test_a_wrong_space_says_what_is_wrong(space, message):
    with pytest.raises(ValueError, match=message):
        check_space(space)


def test_a_model_without_injected_embedding_has_other_candidates():
    ouro = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"])
    candidates, presets = trials_for(ouro, None, 8, 0, {}, {"max_new_tokens": 4})
    assert {trial.kwargs["sampler"] for trial in candidates} == {"speculative_wavefront"}
    assert [trial.preset for trial in presets] == ["lossless"]
    with pytest.raises(ValueError, match="supports no setting"):
        trials_for(ouro, SPACE, 8, 0, {}, {"max_new_tokens": 4})


# --- for real ---


@pytest.fixture(scope="module")
def found(loaded):
    """Two candidates on mental problems, whose outputs are short."""
    space = {"diffusion_forcing": {"inner_recurrence": [1, 8]}}
    task = Task.from_problems("mental", 8)
    return tune(*loaded, task, space=space, batch_size=4, max_new_tokens=6, finalists=1, progress=False)


def test_a_search_on_the_bundled_checkpoint(loaded, found, tmp_path):
    best = found.best.confirmation
    assert best.accuracy == 1.0 and best.loss == 0.0 and len(best.samples) == 4
    assert found.best.kwargs["inner_recurrence"] in (1, 8)
    assert [trial.preset for trial in found.presets] == ["quality", "balanced", "fast", "lossless", "auto"]
    assert all(trial.confirmation.token_agreement == 1.0 for trial in found.presets if trial.preset == "lossless")
    found.write(tmp_path / "record")
    record = json.loads((tmp_path / "record/trials.json").read_text())
    assert len(record["trials"]) == 2 and record["generation_config"] == found.generation_settings
    assert found.best.name in (tmp_path / "record/tuning.md").read_text()
    assert (tmp_path / "record/pareto.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "record").iterdir()) == ["pareto.png", "trials.json", "tuning.md"]


def test_a_saved_folder_decodes_by_the_settings_with_no_flag(loaded, found, tmp_path):
    model, tokenizer = loaded
    found.save(tmp_path / "new", model, tokenizer)
    assert not model.generation_config.names_sampler
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "new")(TASK.samples[0].prompt, return_tensors="pt")
    common = {"max_new_tokens": 8, "seed": 0, "return_dict_in_generate": True}
    output = tuned.generate(**inputs, **common)
    flagged = model.generate(**inputs, **common, **found.best.kwargs)
    assert isinstance(output, DiffusionForcingOutput)
    assert output.sequences.tolist() == flagged.sequences.tolist()
    assert output.stats.to_dict() == flagged.stats.to_dict()

    # The folder of the loaded model: its generation config alone is written.
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    found.best.kwargs["wavefront"] = 5
    try:
        found.save(tmp_path / "new", tuned, tokenizer)
    finally:
        del found.best.kwargs["wavefront"]
    after = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"generation_config.json"}
    stored = json.loads(after["generation_config.json"])
    assert stored["sampler_config"]["wavefront"] == 5
    assert stored["eos_token_id"] == 0 and stored["max_new_tokens"] == 160
    assert before.keys() == after.keys()
    with pytest.raises(ValueError, match="not empty"):
        found.save(tmp_path / "new", model, tokenizer)


# --- the command ---


def command(*arguments):
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def test_the_command(tmp_path):
    result = command(
        *("--dataset", "mental", "--count", 8, "--max-new-tokens", 4, "--trials", 1, "--minutes", 5, "--json"),
        *("--batch-size", 4),
        *("--search", "diffusion_forcing:inner_recurrence=[2],wavefront=[8]", "--save", tmp_path / "tuned"),
        *("--output", tmp_path / "record"),
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["best"] == "diffusion_forcing:inner_recurrence=2,wavefront=8"
    stored = json.loads((tmp_path / "tuned/generation_config.json").read_text())
    assert stored["sampler"] == "diffusion_forcing"
    assert stored["sampler_config"] == {"inner_recurrence": 2, "wavefront": 8}
    assert json.loads((tmp_path / "record/trials.json").read_text()) == record


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-accuracy-loss", "-1"], "max_accuracy_loss=-1"),
        (["--max-accuracy-loss", "101"], "between 0 and 100"),
        (["--min-token-agreement", "2"], "min_token_agreement=2"),
        (["--count", "6"], "at least 4"),
        (["--count", "1"], "at least 4"),
        (["--calibration-share", "0"], "share=0"),
        (["--calibration-share", "0.99"], "confirmation split"),
        (["--trials", "0"], "trials=0"),
        (["--minutes", "0"], "minutes=0"),
        (["--num-steps", "0"], "num_steps=0"),
        (["--search", "diffusion_forcing:wavefont=[8]"], "did you mean 'wavefront'"),
        (["--search", "diffusion_forcing:wavefront=8"], "list of values"),
        (["--search", "wavefront"], "is not a search space"),
        (["--dataset", "python-source"], "has no references"),
        (["--save", "README.md"], "is a file"),
        (["--save", "tests"], "not empty"),
        (["--save", "README.md/tuned"], "cannot be written"),
        (["--output", "README.md/record"], "cannot be written"),
        (["--max-new-tokens", "5000"], "context of 4096"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("hf_diffusion_forcing.evaluation.tuning.run_batch", None)  # nothing is decoded before
    result = command(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in " ".join(result.stderr.split())
