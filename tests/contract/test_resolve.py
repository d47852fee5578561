"""generate(), the server, export, tune and evaluate make the same settings of the same inputs."""

import copy
from unittest.mock import patch

import pytest
import torch

from hf_diffusion_forcing import (
    AdaptiveConfig,
    AutoregressiveConfig,
    DiffusionForcingConfig,
    RavenForCausalLM,
    RecurrentDepthGenerationConfig,
)
from hf_diffusion_forcing.evaluation.candidates import preset_candidates
from hf_diffusion_forcing.evaluation.evaluator import evaluate_samplers
from hf_diffusion_forcing.evaluation.task import Sample, Task
from hf_diffusion_forcing.evaluation.tuning import stored_sampler
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from hf_diffusion_forcing.hub.export import export_checkpoint
from hf_diffusion_forcing.serving.server import choose_sampler
from hf_diffusion_forcing.settings.presets import PRESET_SAMPLERS
from support import tiny_config
from support.matrix import crossed

FORCING = "diffusion_forcing"
CASES = {
    "defaults": ({}, {"sampler": FORCING}, {"wavefront": 32, "inner_recurrence": 4}),
    "keyword over stored": (
        {"sampler": FORCING, "sampler_config": {"wavefront": 5}},
        {"wavefront": 3},
        {"wavefront": 3},
    ),
    "preset under stored": (
        {"sampler_preset": "fast", "sampler_config": {"wavefront": 6}},
        {"num_steps": 4},
        {"wavefront": 6, "inner_recurrence": 1, "num_steps": 4, "max_steps": 4},
    ),
    "preset on a shallow budget": ({"sampler_preset": "quality"}, {"num_steps": 2}, {"inner_recurrence": 2}),
    "stored dataclass": ({"sampler_config": AdaptiveConfig(num_steps=3)}, {}, {"num_steps": 3, "prefill_steps": 3}),
    "stored dataclass and a keyword": (
        {"sampler_config": DiffusionForcingConfig(wavefront=9, seed=1)},
        {"num_steps": 2},
        {"wavefront": 9, "inner_recurrence": 2, "seed": 1},
    ),
    "another sampler than stored": ({"sampler_preset": "fast"}, {"sampler": "adaptive"}, {"adaptive_prefill": False}),
    "a criterion of one's own": (
        {"sampler": FORCING, "sampler_config": {"exit_threshold": 0.5}},
        {"exit_criterion": "kl"},
        {"exit_criterion": "kl", "exit_threshold": None},
    ),
}


@pytest.fixture(params=CASES)
def case(request, bundled):
    """A model with something stored, the call, and what it comes to."""
    stored, call, expected = CASES[request.param]
    model = copy.copy(bundled[0])
    model.generation_config = RecurrentDepthGenerationConfig(**stored)
    settings = model.generation_config.resolve(model.config, **call)
    assert {name: getattr(settings, name) for name in expected} == expected
    return model, call, settings


def test_generate(case):
    model, call, settings = case
    seen = []

    class Spy(SAMPLERS[settings.sampler]):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.config)

    with patch.dict(SAMPLERS, {settings.sampler: Spy}):
        model.generate(torch.tensor([[3, 1]]), max_new_tokens=1, **call)
    assert seen == [settings]


def test_the_server(case):
    model, call, settings = case
    choose_sampler(model, **call)
    assert model.decoding_config().sampler_config == settings


def test_evaluate(case, bundled):
    model, call, settings = case
    task = Task("one", (Sample("Q: Start at 3 + 2.", None, 0),))
    call = call | {"sampler": settings.sampler}
    call.pop("seed", None)
    result = evaluate_samplers(model, bundled[1], task, {"it": call}, max_new_tokens=1, progress=False)
    assert result.settings["samplers"]["it"]["settings"] == settings.to_dict()


def test_tune_stores_what_it_measured(case):
    model, _, settings = case
    with stored_sampler(model, {"sampler": settings.sampler, "sampler_config": settings.to_dict()}):
        assert model.decoding_config().sampler_config == settings


@pytest.mark.parametrize(
    ("preset", "depth"),
    crossed(PRESET_SAMPLERS, [2, 16], keep=[("quality", 2), ("fast", 16), ("lossless", 16), ("auto", 2)]),
)
def test_presets_that_are_tuned_and_exported(bundled, preset, depth, tmp_path):
    model, tokenizer = bundled
    settings = RecurrentDepthGenerationConfig().resolve(model.config, sampler_preset=preset, num_steps=depth)
    candidate = preset_candidates(model.config.model_type, depth)[preset]
    with stored_sampler(model, {}):
        assert model.decoding_config(**candidate, num_steps=depth).sampler_config == settings
    export_checkpoint(model, tokenizer, tmp_path / "out", preset, sampler_config={"num_steps": depth})
    exported = RecurrentDepthGenerationConfig.from_pretrained(tmp_path / "out")
    assert exported.resolve(model.config) == settings


AUTO = {"draft_depth": "auto", "draft_tokens": "auto"}


@pytest.mark.parametrize(
    ("stored", "call", "sampler", "expected"),
    [
        ({}, {"sampler_preset": "auto", "lossless": True}, "speculative_wavefront", AUTO),
        (
            {},
            {"sampler_preset": "auto", "lossless": True, "draft_depth": 2},
            "speculative_wavefront",
            {"draft_depth": 2},
        ),
        ({}, {"sampler_preset": "auto", "lossless": False}, FORCING, {"wavefront": "auto"}),
        ({"sampler_preset": "auto"}, {"lossless": True}, "speculative_wavefront", AUTO),
        ({"sampler_preset": "auto", "sampler": FORCING}, {"lossless": True}, "speculative_wavefront", AUTO),
        ({"sampler_preset": "auto", "lossless": True}, {}, "speculative_wavefront", AUTO),
        ({"sampler_preset": "auto", "lossless": True}, {"sampler_preset": "auto"}, "speculative_wavefront", AUTO),
        ({"sampler_preset": "auto", "lossless": True}, {"lossless": False}, FORCING, {"wavefront": "auto"}),
        ({"sampler_preset": "auto", "lossless": True}, {"sampler_preset": "fast"}, FORCING, {"wavefront": 32}),
        ({"sampler_preset": "auto", "lossless": True}, {"sampler": FORCING}, FORCING, {"wavefront": 32}),
        ({"sampler_preset": "auto", "lossless": True}, {"sampler": False}, False, {}),
        (
            {"sampler_preset": "auto", "lossless": True, "sampler_config": {"draft_tokens": 3}},
            {},
            "speculative_wavefront",
            {"draft_depth": "auto", "draft_tokens": 3},
        ),
    ],
)
def test_lossless_goes_with_the_preset_auto(stored, call, sampler, expected, bundled, tmp_path):
    RecurrentDepthGenerationConfig(**stored).save_pretrained(tmp_path)
    for config in (RecurrentDepthGenerationConfig(**stored), RecurrentDepthGenerationConfig.from_pretrained(tmp_path)):
        settings = config.resolve(bundled[0].config, **call)
        assert settings.sampler == sampler
        assert {name: getattr(settings, name) for name in expected} == expected


def test_lossless_without_the_preset_auto_is_refused(bundled):
    model = bundled[0]
    for stored, call in (
        ({}, {"lossless": True}),
        ({}, {"sampler_preset": "fast", "lossless": True}),
        ({"sampler_preset": "fast"}, {"lossless": True}),
        ({"sampler_preset": "lossless", "lossless": True}, {}),
    ):
        with pytest.raises(ValueError, match=r"lossless=True .*sampler_preset='auto'.*sampler_preset='lossless'"):
            RecurrentDepthGenerationConfig(**stored).resolve(model.config, **call)
    resolve = RecurrentDepthGenerationConfig().resolve
    with pytest.raises(TypeError, match="lossless='yes' must be True or False"):
        resolve(model.config, sampler_preset="auto", lossless="yes")
    with pytest.raises(
        ValueError, match="lossless=True belongs to sampler='speculative_wavefront', not to sampler='adap"
    ):
        resolve(model.config, sampler="adaptive", sampler_preset="auto", lossless=True)
    with pytest.raises(ValueError, match="draft_depth='auto' is not possible with compile=True"):
        resolve(model.config, sampler_preset="auto", lossless=True, compile=True)


def test_the_lossless_preset_auto_is_exported(bundled, tmp_path):
    model, tokenizer = bundled
    export_checkpoint(model, tokenizer, tmp_path / "out", "auto", lossless=True)
    exported = RecurrentDepthGenerationConfig.from_pretrained(tmp_path / "out")
    assert (exported.sampler, exported.sampler_preset, exported.lossless) == ("speculative_wavefront", "auto", True)
    assert exported.resolve(model.config).draft_tokens == "auto"
    assert "`auto` and `lossless=True`" in (tmp_path / "out" / "README.md").read_text()


def test_no_sampler_is_plain_decoding():
    model = RavenForCausalLM(tiny_config())
    model.generation_config.sampler_preset = "fast"
    plain = model.generation_config.resolve(model.config, sampler=False)
    assert plain.sampler is False and plain.num_steps == 6
    with pytest.raises(ValueError, match="sampler=False"):
        model.generate(torch.tensor([[3]]), num_beams=2, max_new_tokens=2)
    assert model.generate(torch.tensor([[3]]), num_beams=2, max_new_tokens=2, sampler=False).shape == (1, 3)
    with pytest.raises(ValueError, match="does not fit"):
        model.generation_config.resolve(model.config, sampler=False, sampler_config=AutoregressiveConfig())
    with pytest.raises(ValueError, match="belongs to sampler='diffusion_forcing', not to sampler=False"):
        model.generation_config.resolve(model.config, sampler=False, sampler_preset="fast")
    with pytest.raises(ValueError, match="wavefront=3 is not a setting of plain decoding"):
        model.generation_config.resolve(model.config, sampler=False, wavefront=3)


@pytest.mark.parametrize("first", ["autoregressive", "diffusion_forcing", "adaptive"])
@pytest.mark.parametrize("second", ["autoregressive", "diffusion_forcing", "adaptive"])
def test_what_the_call_does_not_say_follows_the_cache(first, second):
    """A text goes on in another sampler's cache as in a new cache of the same sharing."""
    torch.manual_seed(0)
    model = RavenForCausalLM(tiny_config()).eval()
    common = {"max_new_tokens": 4, "seed": 3, "return_dict_in_generate": True}
    begun = model.generate(torch.tensor([[3, 1, 4]]), sampler=first, **common)
    sharing = begun.cache.kv_sharing
    # What is stored, the preset and the default come after the cache.
    model.generation_config = RecurrentDepthGenerationConfig(
        sampler=second, sampler_config={"kv_sharing": "none" if sharing == "last" else "last"}
    )
    copied = copy.deepcopy(begun.cache)
    gone_on = model.generate(begun.sequences, cache=begun.cache, **common)
    said = model.generate(begun.sequences, cache=copied, kv_sharing=sharing, **common)
    assert gone_on.sequences.tolist() == said.sequences.tolist()
    assert gone_on.cache is begun.cache and gone_on.cache.kv_sharing == sharing
    config = model.generation_config
    assert config.resolve(model.config, cache_sharing=sharing).kv_sharing == sharing
    assert config.resolve(model.config, cache_sharing=sharing, kv_sharing=3).kv_sharing == 3
    assert config.resolve(model.config, config, cache_sharing=sharing).kv_sharing != sharing


def test_a_preset_follows_the_cache():
    model = RavenForCausalLM(tiny_config()).eval()
    settings = model.generation_config.resolve(model.config, sampler_preset="fast", cache_sharing="none")
    assert settings.kv_sharing == "none" and settings.inner_recurrence == 1
