"""docs/theory.md: path independence on the trained checkpoint, its formulas, and its figures."""

import json

import pytest

from hf_diffusion_forcing import RavenConfig
from hf_diffusion_forcing.evaluation.path_independence import approaches
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.roofline import bytes_read, roofline
from hf_diffusion_forcing.generation.wave_choice import steady_wave, wave_seconds, waves
from support import FIXTURES, ROOT


@pytest.mark.parametrize("offset", [2, 11])
def test_a_state_forgets_where_it_started(bundled, offset):
    model, tokenizer = bundled
    problem = next(problems(5, held_out=True, kind="worked"))
    prompt = tokenizer(problem.prompt, return_tensors="pt").input_ids
    ids = tokenizer(problem.prompt + problem.answer, return_tensors="pt").input_ids
    distances = approaches(model, ids, prompt.shape[1] + offset, steps=32, wrong_steps=8)
    noise, zeros, misled = distances.values()
    assert noise[0] > 0.5 and zeros[0] == 1
    # Eight recurrences with another token have led somewhere else, near or far.
    assert misled[0] > 1e-3
    for name, distance in distances.items():
        assert distance[-1] < 1e-5, name


def test_the_formulas_of_width():
    """The ideal while width is free; beyond, I r' / d of it."""
    num_steps, core, ends = 32, 4, 4
    for inner in (1, 2, 4, 8):
        ideal = (ends + num_steps * core) / (ends + inner * core)
        for balance, needed in ((1e9, 32), (64, 32), (2, 32), (4, 32)):
            curve = roofline(balance, core, ends)
            width = needed / inner
            speedup = curve.seconds_per_tick(1, num_steps) / curve.seconds_per_tick(width, inner)
            assert speedup == pytest.approx(ideal * min(1, balance * inner / needed))
    # The best tick is the one whose wave just fits.
    curve = roofline(8, core, ends)
    assert min(waves(32, num_steps), key=lambda wave: wave_seconds(curve, 32, *wave))[1] == 4


def test_ticks_a_token_are_those_of_the_sweep():
    """The rounded corner between a wave's two bounds, against core passes a token of the recorded texts."""
    text = " ".join((ROOT / "docs/theory.md").read_text().split())
    record = json.loads((ROOT / "docs/benchmarks/speed_wavefront.json").read_text())
    for domain in ("Problems", "Python source"):
        (table,) = [table for table in record["tables"] if table["title"] == f"{domain}, the preset fast"]
        passes = {row["sampler"]: row["core_passes_per_token"] for row in table["rows"]}
        stay = passes["fast, wavefront 1"]
        said = [f"{steady_wave(stay, n)[0]:.2f}" for n in (2, 4, 8)]
        measured = [f"{passes[f'fast, wavefront {n}']:.2f}" for n in (2, 4, 8)]
        assert (
            f"{said[0]}, {said[1]} and {said[2]}" in text and f"{measured[0]}, {measured[1]} and {measured[2]}" in text
        )
        assert f"t is {stay:.1f}" in text


def test_the_formulas_of_bytes():
    config = RavenConfig.from_pretrained(FIXTURES / "published" / "huginn-0125")
    shared = bytes_read(config, lambda passes: (1, passes, 1))
    by_depth = bytes_read(config, lambda passes: (1, 32, 2))
    # What docs/how-it-works.md says a position of Huginn-0125 takes in 8 layers.
    assert shared(1, 1) - shared(1, 0) == 168_960
    near, far = 0, 10**9
    assert shared(32, near) / by_depth(2, near) > 10
    assert shared(32, far) / by_depth(2, far) == pytest.approx(132 / 134, rel=1e-3)
    assert shared(32, far) / shared(1, far) == pytest.approx(16.5, rel=1e-3)


def test_the_figures_are_those_of_the_record():
    text = " ".join((ROOT / "docs/theory.md").read_text().split())
    record = json.loads((ROOT / "docs/benchmarks/theory.json").read_text())
    noise, zeros, misled = (each["recurrences_to_3_percent"] for each in record["path_independence"]["starts"].values())
    assert f"{noise['mean']:.1f} recurrences on average from noise" in text
    assert f"{noise['mean']:.1f}, {noise['most']}" == f"{zeros['mean']:.1f}, {zeros['most']}"
    assert f"at most {noise['most']}; after the wrong token {misled['mean']:.1f}, at most {misled['most']}" in text
    bundled = json.loads((ROOT / "docs/benchmarks/bundled.json").read_text())
    shallow, full = (bundled["quality"][f"autoregressive, r = {r}"]["worked"] for r in (1, 32))
    wave = "diffusion_forcing, r' = 1"
    assert f"autoregression solves {100 * shallow:.1f} %" in text
    assert f"it solves {100 * record['solved_after_deep_prompt']['1']:.1f} %" in text
    assert f"{bundled['speed'][wave]['core_passes_per_token']:.2f} passes a token" in text
    assert bundled["quality"][wave]["worked"] == full
    assert f"solves {100 * full:.1f} %, as autoregression does with 32" in text
