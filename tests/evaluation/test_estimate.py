"""`estimate`: its roofline by hand, its counts against real models, and the command."""

import json
import runpy
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from hf_diffusion_forcing.evaluation.devices import DEVICES, PUBLISHED, Device
from hf_diffusion_forcing.evaluation.estimate import estimate
from hf_diffusion_forcing.evaluation.model_shape import ModelShape
from hf_diffusion_forcing.evaluation.published_models import MODELS, config_of
from hf_diffusion_forcing.evaluation.roofline import cost_curve_of, pass_work
from hf_diffusion_forcing.evaluation.this_device import this_device
from hf_diffusion_forcing.evaluation.wave_statistics import (
    SAMPLERS,
    WaveStatistics,
    measure_all_waves,
    measure_waves,
    stored_waves,
)
from support import FAMILIES, FIXTURES, ROOT, tiny_config
from support.commands import run

SLOW = Device("slow", "A slow one", 1000.0, 10_000.0, 1e9, 500.0, "bfloat16", "this test")
FAST = "diffusion_forcing:preset=fast"


@pytest.fixture(scope="module")
def shape():
    return ModelShape.of_config(tiny_config(), "tiny")


def wave(ticks, passes, positions, ends=1.0, shares_kv=True):
    """Statistics of a sampler whose prelude and coda run `ends` times a tick over the positions of the core."""
    calls = {"embed": ends, "recur": passes, "decode": ends}
    return WaveStatistics(ticks, calls, dict.fromkeys(calls, positions), shares_kv)


# --- the roofline, by hand ---


def test_the_weights_of_a_tiny_model(shape):
    """Width 32, MLP 48, vocabulary 61: a layer has 3 x 32 x 32 + 32 x 32 + 2 x 32 x 48 + 48 x 32 = 8704 weights."""
    embed, recur, decode = shape.verbs.values()
    assert (embed.weights, embed.layers) == (8704, 1)
    assert (recur.weights, recur.layers) == (2 * 8704 + 64 * 32, 2)
    assert (decode.weights, decode.layers) == (8704 + 61 * 32, 1)
    assert (shape.entry, shape.queries, shape.channels, shape.num_steps) == (64, 32, 32, 6)


def test_the_work_of_a_pass(shape):
    work = pass_work(shape, "recur", positions=3, context=10, itemsize=2)
    assert work.read == 2 * (19456 + 2 * 10 * 64) == 41472
    assert work.operations == 3 * (2 * 19456 + 4 * 2 * 10 * 32) == 124416
    assert work.sent == work.reductions == 0
    assert work.seconds(SLOW) == {"bytes": 41.472, "arithmetic": 0.0, "links": 0.0}
    assert work.seconds(replace(SLOW, arithmetic=1000.0))["arithmetic"] == pytest.approx(124.416)
    apart = pass_work(shape, "recur", positions=3, context=10, itemsize=2, entries=3)
    assert apart.read == 2 * (19456 + 3 * 2 * 10 * 64) and apart.operations == work.operations


def test_the_work_of_several_devices(shape):
    """Two all-reduces a layer of 3 x 32 numbers of two bytes, of which each of 4 devices sends 2 x 3 / 4."""
    work = pass_work(shape, "recur", positions=3, context=10, itemsize=2, devices=4)
    assert work.reductions == 4 and work.sent == 4 * 1.5 * 192
    seconds = work.seconds(SLOW, 4)
    assert seconds["bytes"] == pytest.approx(41.472 / 4) and seconds["links"] == 1152 / 500


def test_a_tick_is_the_sum_of_its_passes(shape):
    """At one position reading takes longer, at 16 arithmetic does."""
    result = estimate(shape, SLOW, {"autoregressive": wave(1, 6, 1), FAST: wave(1.5, 1, 16)}, "by hand", context=10)
    plain, fast = result.rows
    ends = 2 * (8704 + 10656 + 2 * 10 * 64)
    assert plain["bytes_per_tick"] == ends + 6 * 41472 == pytest.approx(plain["seconds_per_tick"] * 1000)
    assert plain["limited_by"] == "bytes" and plain["speedup"] == 1.0
    operations = 16 * (2 * (8704 + 10656) + 4 * 2 * 10 * 32) + 16 * 41472
    assert fast["operations_per_tick"] == operations and fast["limited_by"] == "arithmetic"
    assert fast["seconds_per_tick"] == pytest.approx(operations / 10_000)
    assert fast["tokens_per_second"] == pytest.approx(10_000 / (1.5 * operations))
    assert fast["recurrences_per_token"] == 24
    assert fast["speedup"] == pytest.approx(fast["tokens_per_second"] / plain["tokens_per_second"])


def test_entries_of_every_recurrence_are_read_apart(shape):
    shared, apart = (wave(1, 1, 4, shares_kv=shares) for shares in (True, False))
    rows = estimate(shape, SLOW, {"autoregressive": shared, "speculative_wavefront": apart}, "", context=10).rows
    # Four entries in place of one, in two layers of the core and one of the coda; the prelude has one.
    assert rows[1]["bytes_per_tick"] - rows[0]["bytes_per_tick"] == 2 * 3 * 3 * 10 * 64


def test_a_slow_link_limits(shape):
    result = estimate(shape, replace(SLOW, link=1e-3), {"autoregressive": wave(1, 6, 1)}, "by hand", 2)
    assert result.rows[0]["limited_by"] == "links"
    assert "all-reduces/tick" in result.cells()[0] and result.cells()[1][0][-2] == "28"


def test_the_curve_is_the_sum_of_verbs(shape):
    curve = cost_curve_of(shape, SLOW)
    assert curve.core[0] == pytest.approx(2 * (19456 + 2 * 64) / 1000)
    assert curve.seconds_per_tick(64, 2) == pytest.approx(curve.ends[-1] + 2 * curve.core[-1])


# --- counts against real models ---


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_counts_as_its_model(name):
    """The linear layers of every family, once each; the rest of its parameters are embeddings, norms and biases."""
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name])
    counted, real = ModelShape.of_config(AutoConfig.from_pretrained(FAMILIES[name])), ModelShape.of_model(model)
    norms = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("q_norm.weight", "k_norm.weight")))
    assert counted.parameters == model.num_parameters() - (norms if name == "olmo" else 0)
    for verb, part in counted.verbs.items():
        assert part.weights == real.verbs[verb].weights and part.layers == real.verbs[verb].layers
        assert real.verbs[verb].weight_bytes == 4 * part.weights
    assert (counted.entry, counted.queries, counted.channels) == (real.entry, real.queries, real.channels)
    linears = {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    gate = sum(count for n, count in linears.items() if n.endswith("exit_gate"))
    repeats = getattr(model.config, "L_cycles", 1) - 1
    again = repeats * sum(count for n, count in linears.items() if "L_module" in n)
    assert sum(part.weights for part in counted.verbs.values()) == sum(linears.values()) - gate + again
    tables = {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings().weight
    tied = head.numel() if head is model.get_input_embeddings().weight else 0
    rest = counted.parameters - sum(linears.values()) - sum(tables.values()) + tied
    assert 0 <= rest < 0.05 * counted.parameters


@pytest.mark.parametrize("name", [name for name in MODELS if name != "looped-70b"])
def test_a_built_in_name_is_the_published_config(name):
    config = AutoConfig.from_pretrained(FIXTURES / "published" / name)
    ours, published = ModelShape.of_config(config_of(name)), ModelShape.of_config(config)
    for part in (*ours.verbs.values(), *published.verbs.values()):
        part.weight_bytes = 0  # those of the precision on the Hub
    assert ours == published


def test_the_hypothetical_model_has_70b_parameters():
    shape = ModelShape.of_config(config_of("looped-70b"))
    assert 70e9 < shape.parameters < 71e9 and shape.verbs["recur"].layers == 40


# --- devices ---


def test_arithmetic_is_dense():
    """Half of what the data sheets state with sparsity."""
    assert DEVICES["h100"].arithmetic == pytest.approx(1979e12 / 2, rel=1e-3)
    assert DEVICES["l4"].arithmetic == 242e12 / 2
    assert DEVICES["m4-max"].arithmetic == pytest.approx(40 * 128 * 2 * 1.678e9, rel=2e-3)
    assert all(device.source and device.itemsize == 2 for device in PUBLISHED)


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr("hf_diffusion_forcing.evaluation.this_device.WIDTH", 256)
    device = this_device()
    assert device.bandwidth > 1e6 and device.arithmetic > 1e6 and device.memory > 1e8
    assert device.link is None and "256 x 256" in device.source


# --- the statistics of waves ---

PROMPTS = [torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2]])]


def test_passes_are_those_of_the_stats(tiny):
    settings = {"sampler": "diffusion_forcing", "wavefront": 4, "inner_recurrence": 2}
    counted = measure_waves(tiny, PROMPTS[:1], settings, 12)
    output = tiny.generate(PROMPTS[0], **settings, seed=0, max_new_tokens=12, return_dict_in_generate=True)
    assert counted.ticks == pytest.approx(1 / output.stats.tokens_per_forward)
    assert counted.recurrences == pytest.approx(output.stats.recurrences_per_token)
    assert counted.calls == {"embed": 1, "recur": 2, "decode": 1}
    assert counted.positions["embed"] == counted.positions["recur"] == counted.positions["decode"]


def test_passes_of_every_sampler(tiny):
    waves = measure_all_waves(tiny, PROMPTS, 10, num_steps=4)
    assert list(waves) == list(SAMPLERS)
    plain, adaptive, fast, lossless = waves.values()
    assert plain == WaveStatistics(1, {"embed": 1, "recur": 4, "decode": 1}, dict.fromkeys(plain.calls, 1), False)
    # Nothing converges: a token takes all of its recurrences, and its prelude and coda run once.
    assert adaptive.ticks == 4 and adaptive.calls == {"embed": 0.25, "recur": 1, "decode": 0.25}
    assert fast.shares_kv and fast.positions["decode"] == fast.positions["recur"]
    assert not lossless.shares_kv and lossless.positions["embed"] == 1 and lossless.calls["recur"] == 1
    assert measure_waves(tiny, PROMPTS, SAMPLERS["autoregressive"], 10).calls["recur"] == 6


def test_a_model_without_injected_embedding():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    waves = measure_all_waves(model, PROMPTS[:1], 4)
    assert set(SAMPLERS) - set(waves) == {FAST}
    result = estimate(ModelShape.of_model(model, "ouro"), SLOW, waves, "its own")
    assert result.undefined == [FAST] and f"Not defined for this model: {FAST}." in result.sentences()


@pytest.mark.parametrize("text", ["problems", "python-source"])
@pytest.mark.parametrize("num_steps", [2, 4, 8, 16, 32])
def test_stored_statistics(text, num_steps):
    waves = stored_waves(text, num_steps)
    assert list(waves) == list(SAMPLERS)
    plain, adaptive, fast, lossless = waves.values()
    assert plain.recurrences == plain.calls["recur"] == num_steps and plain.ticks == 1
    assert 1 <= adaptive.ticks <= num_steps and adaptive.positions["recur"] == 1
    assert fast.ticks >= 1 and fast.calls["recur"] == 1 and fast.shares_kv
    assert lossless.recurrences >= 0.9 * num_steps and not lossless.shares_kv


def test_nothing_to_count(tiny):
    with pytest.raises(ValueError, match="There are no prompts"):
        measure_waves(tiny, [], SAMPLERS["autoregressive"])
    with pytest.raises(ValueError, match="ended at its first token"):
        measure_waves(tiny, PROMPTS[:1], SAMPLERS["autoregressive"], max_new_tokens=1)


# --- the command ---


def test_the_command():
    result = run("estimate", "--model", "huginn-0125", "--device", "h100")
    assert result.exit_code == 0, result.stderr
    assert "\033" not in result.stdout
    said = " ".join(result.stdout.split())
    for words in (
        "3.56B parameters in bfloat16",
        "r = 32",
        "3350 GB/s, 989.4 TFLOPS",
        "never run",
        "speculative_wavefront",
    ):
        assert words in said
    record = json.loads(run("estimate", "--model", "huginn-0125", "--device", "h100", "--json").stdout)
    plain = record["rows"][0]
    # 32 recurrences of 1.64 billion weights and the other layers, at 512 positions of context, over 3.35 TB/s.
    read = 2 * (790_732_800 + 32 * 1_637_222_400 + 1_136_762_880) + 2 * 512 * 10560 * (4 + 32 * 4)
    assert plain["bytes_per_tick"] == read and plain["tokens_per_second"] == pytest.approx(3.35e12 / read)
    assert plain["limited_by"] == "bytes" and record["settings"]["device"]["source"].startswith("NVIDIA H100")


def test_the_command_over_several_devices(tmp_path):
    output = tmp_path / "estimate.md"
    asked = ("--model", "looped-70b", "--device", "a100", "--tensor-parallel", 8, "--statistics", "python-source")
    result = run("estimate", *asked, "--output", output)
    assert result.exit_code == 0, result.stderr
    assert "300 GB/s to the others" in output.read_text() and "| all-reduces/tick |" in output.read_text()


def test_the_command_measures_its_own_checkpoint(tmp_path, brief):
    asked = ("--model", brief, "--device", "l4", "--statistics", "own", "--max-new-tokens", 4, "--prompt", "Q: 1 + 2")
    record = json.loads(run("estimate", *asked, "--json").stdout)
    assert record["settings"]["model"]["num_steps"] == 8 and len(record["rows"]) == 4
    assert record["settings"]["statistics"] == "measured on the checkpoint, up to 4 tokens a prompt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "h10"], "device='h10' is unknown; did you mean 'h100'"),
        (["--model", "huginn-0126"], "nor a built-in name; did you mean 'huginn-0125'"),
        (["--model", "looped-70b", "--device", "l4"], "takes 141 GB in bfloat16"),
        (["--model", "ouro-2.6b", "--device", "rtx4090", "--tensor-parallel", "2"], "no published link"),
        (["--model", "ouro-2.6b", "--device", "l4", "--statistics", "own"], "ouro-2.6b is a built-in name"),
        (["--device", "l4", "--prompt", "hi"], "--prompt needs --statistics own"),
        (["--device", "l4", "--output", "table.txt"], "must end in .json or .md"),
    ],
)
def test_bad_input_says_what_to_do(arguments, message):
    result = run("estimate", *arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in " ".join(result.stderr.split())


def test_a_model_that_is_not_looped(tmp_path):
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    result = run("estimate", "--model", tmp_path, "--device", "l4")
    assert result.exit_code == 2 and "is a gpt2 model: pass a recurrent-depth model" in result.stderr


def test_a_depth_without_statistics(tmp_path):
    tiny_config(mean_recurrence=5).save_pretrained(tmp_path)
    result = run("estimate", "--model", tmp_path, "--device", "l4")
    assert result.exit_code == 2 and "num_steps=5: statistics are stored for 2, 4, 8, 16, 32" in result.stderr


def test_bad_arguments_of_the_function(shape):
    waves = {"autoregressive": wave(1, 6, 1)}
    with pytest.raises(ValueError, match="context=0 must be at least 1"):
        estimate(shape, SLOW, waves, "", context=0)
    with pytest.raises(TypeError, match=r"tensor_parallel=1\.5 must be an int"):
        estimate(shape, SLOW, waves, "", tensor_parallel=1.5)
    with pytest.raises(ValueError, match="text='prose' is unknown"):
        stored_waves("prose", 32)


# --- the pages ---


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        return runpy.run_path(str(ROOT / "scripts" / "measure_estimate.py"))


def test_the_tables_of_the_page_are_calculated(script):
    text = (ROOT / "docs" / "estimate.md").read_text()
    assert script["BEGIN"] + script["device_tables"]() + script["END"] in text, (
        "run python scripts/measure_estimate.py --part devices"
    )


def test_the_page_of_ticks_is_its_record(script):
    stored = ROOT / "docs" / "benchmarks" / "estimate.json"
    assert script["ticks_page"](json.loads(stored.read_text())) == stored.with_suffix(".md").read_text()


def test_the_page_states_the_error_of_the_record():
    text = " ".join((ROOT / "docs" / "estimate.md").read_text().split())
    models = json.loads((ROOT / "docs" / "benchmarks" / "estimate.json").read_text())["models"].values()
    off = [100 * (1 - tick["estimated"] / tick["measured"]) for model in models for tick in model["ticks"]]
    assert f"{min(off):.0f} % to {max(off):.0f} % too short" in text
    fast = [row for model in models for row in model["decoding"] if row["sampler"] == FAST]
    for kind in ("estimated", "measured"):
        assert f"{kind} at {fast[0][f'{kind}_speedup']:.1f}x and {fast[1][f'{kind}_speedup']:.1f}x" in text
    adaptive = [row for model in models for row in model["decoding"] if row["sampler"] == "adaptive"]
    assert all(0.9 < row["measured_speedup"] / row["estimated_speedup"] < 1.1 for row in adaptive)
