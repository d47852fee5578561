"""Exit criteria, latent processors, presets and precedence, end to end through generate()."""

import json
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_diffusion_forcing import (
    EXIT_CRITERIA,
    LATENT_PROCESSORS,
    AdaptiveConfig,
    DiffusionForcingConfig,
    ExitCriterion,
    LatentDifferenceCriterion,
    LatentProcessor,
)
from hf_diffusion_forcing.settings.presets import PRESETS
from support.matrix import cases

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
# The gate and the probe are a model's own: tests/families and test_heads_file.py have models with one.
SPECS = {name: {"name": name} for name in EXIT_CRITERIA if name not in ("exit_gate", "learned")} | {
    "fixed": {"name": "fixed", "steps": 4},
    "any": {"any": ["latent_difference", "kl"]},
    "all": {"all": ["latent_difference", {"name": "token_stability", "patience": 1}]},
}


def forcing(model, **kwargs):
    return model.generate(
        PROMPT,
        **{"sampler": "diffusion_forcing", "seed": 0, "max_new_tokens": 12, "return_dict_in_generate": True} | kwargs,
    )


@pytest.mark.parametrize(
    ("name", "sampler"),
    cases(
        product(SPECS, ["diffusion_forcing", "adaptive"]),
        keep=[*((name, "diffusion_forcing") for name in SPECS), ("kl", "adaptive"), ("latent_difference", "adaptive")],
    ),
)
def test_every_criterion_decodes_and_is_stored_by_name(tiny, name, sampler, tmp_path):
    settings = {"exit_criterion": SPECS[name], "num_steps": 8}
    if sampler == "diffusion_forcing":
        settings["inner_recurrence"] = 1
    output = forcing(tiny, sampler=sampler, max_new_tokens=6, **settings)
    assert output.stats.tokens_committed == [6]
    tiny.generation_config.sampler = sampler
    tiny.generation_config.sampler_config = settings
    tiny.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.generate(PROMPT, seed=0, max_new_tokens=6).tolist() == output.sequences.tolist()


def test_a_criterion_decides_when_a_position_exits(tiny):
    """With one position at a time and one recurrence a tick, `fixed` makes exactly so many recurrences a token."""
    for steps in (1, 3, 6):
        criterion = {"name": "fixed", "steps": steps}
        for settings in ({"wavefront": 1, "inner_recurrence": 1}, {"sampler": "adaptive"}):
            output = forcing(tiny, exit_criterion=criterion, **settings)
            assert output.stats.core_passes == 11 * steps
        plain = tiny.generate(
            PROMPT, sampler="autoregressive", kv_sharing="last", num_steps=steps, seed=0, max_new_tokens=12
        )
        prefilled = forcing(tiny, sampler="adaptive", exit_criterion=criterion, prefill_steps=steps)
        assert prefilled.sequences.tolist() == plain.tolist()


class Eager(ExitCriterion):
    """A user's own: everything has converged at once."""

    def __call__(self, refinement):
        return torch.ones_like(refinement.positions, dtype=torch.bool)


@dataclass
class Halve(LatentProcessor):
    """A user's own: states are halved before the recurrences."""

    def process_state(self, state, refinement):
        return state / 2


def test_instances_of_ones_own(tiny, tmp_path):
    output = forcing(tiny, exit_criterion=Eager(), inner_recurrence=1)
    assert output.stats.ticks == 11
    plain = forcing(tiny).sequences.tolist()
    assert forcing(tiny, latent_processors=[Halve()]).sequences.tolist() != plain
    config = DiffusionForcingConfig(exit_criterion=Eager())
    with pytest.raises(TypeError, match="register_exit_criterion"):
        config.to_dict()
    slow = {"inner_recurrence": 1, "exit_threshold": 0.0}
    assert (
        forcing(tiny, **slow).stats.ticks > 11 == forcing(tiny, sampler_config=config, inner_recurrence=1).stats.ticks
    )


@pytest.mark.parametrize("name", LATENT_PROCESSORS)
def test_every_processor_decodes_and_is_stored_by_name(tiny, name, tmp_path):
    output = forcing(tiny, latent_processors=[name], inner_recurrence=1)
    assert output.stats.tokens_committed == [12]
    assert output.stats != forcing(tiny, inner_recurrence=1).stats
    config = DiffusionForcingConfig(latent_processors=[name], inner_recurrence=1)
    config.save_pretrained(tmp_path)
    again = DiffusionForcingConfig.from_pretrained(tmp_path)
    assert forcing(tiny, sampler_config=again).sequences.tolist() == output.sequences.tolist()


def test_the_fields_are_shorthands_for_processors(tiny):
    tiny.generation_config.sampler_config = {"inner_recurrence": 1}
    by_field = forcing(tiny, embedding_momentum=0.3, state_noise=0.2, noise_schedule="linear", continuous_compute=True)
    by_name = forcing(
        tiny,
        latent_processors=[
            {"name": "embedding_momentum", "eta": 0.3},
            "continuous_compute",
            {"name": "state_noise", "beta": 0.2, "schedule": "linear"},
        ],
    )
    assert by_field.sequences.tolist() == by_name.sequences.tolist()
    assert by_field.stats == by_name.stats


def test_kv_slots(tiny):
    """One slot is "last"; as many slots as recurrences are "none"; memory follows the number."""
    common = {"inner_recurrence": 2, "wavefront": 5, "num_steps": 6}
    outputs = {slots: forcing(tiny, kv_sharing=slots, **common) for slots in ("last", 1, 3, 6, "none")}
    texts = {slots: output.sequences.tolist() for slots, output in outputs.items()}
    assert texts["last"] == texts[1] and texts["none"] == texts[6]
    bytes_of = {slots: output.cache.nbytes for slots, output in outputs.items()}
    layers = {slots: 1 + 2 * count + 1 for slots, count in {"last": 1, 1: 1, 3: 3, 6: 6, "none": 6}.items()}
    assert {slots: count * bytes_of["last"] for slots, count in layers.items()} == {
        slots: layers["last"] * size for slots, size in bytes_of.items()
    }


def test_prefill_steps(tiny):
    output = forcing(tiny, prefill_steps=3)
    assert output.stats.prefill_core_passes == 3
    deep = forcing(tiny, prefill_steps=9, kv_sharing="none")
    assert deep.stats.prefill_core_passes == 9
    first = tiny.generate(PROMPT, sampler="autoregressive", num_steps=9, seed=0, max_new_tokens=1)
    assert deep.sequences[0, :6].tolist() == first[0].tolist()


# --- precedence: call keyword > passed config > generation_config > preset > default ---


@pytest.fixture
def width(tiny):
    """A call's wavefront, as the sampler got it."""

    def used(room=12, **kwargs):
        seen = []

        class Spy(LatentDifferenceCriterion):
            def __call__(self, refinement):
                seen.append(refinement.positions.shape[1])
                return torch.zeros_like(refinement.positions, dtype=torch.bool)

        settings = {"num_steps": 12, "inner_recurrence": 1, "exit_criterion": Spy(), "adaptive_prefill": False}
        tiny.generate(PROMPT, max_new_tokens=room, **settings, **kwargs)
        return max(seen)

    return used


@pytest.fixture
def stored(tiny):
    tiny.generation_config.sampler = "diffusion_forcing"
    tiny.generation_config.sampler_config = {"wavefront": 5}
    tiny.generation_config.sampler_preset = "fast"
    return tiny


def test_default(tiny, width):
    assert width(sampler="diffusion_forcing", room=40) == 32


def test_preset_over_default(tiny, width, monkeypatch):
    monkeypatch.setitem(PRESETS["huginn_raven"], "fast", {"wavefront": 4})
    assert width(sampler_preset="fast") == 4
    tiny.generation_config.sampler_preset = "fast"
    assert width() == width(sampler="diffusion_forcing") == 4


def test_generation_config_over_preset(stored, width, monkeypatch):
    monkeypatch.setitem(PRESETS["huginn_raven"], "fast", {"wavefront": 4})
    assert width() == width(sampler_preset="fast") == 5


def test_a_passed_generation_config_over_the_models(stored, width):
    config = GenerationConfig(sampler="diffusion_forcing", sampler_config={"wavefront": 6})
    assert width(generation_config=config) == 6
    assert width(generation_config=GenerationConfig()) == 5


def test_passed_config_over_generation_config(stored, width):
    assert width(sampler_config={"wavefront": 7}) == 7
    assert width(sampler_config=DiffusionForcingConfig(wavefront=8)) == 8


def test_call_keyword_over_passed_config(stored, width):
    assert width(sampler_config={"wavefront": 7}, wavefront=3) == 3


def test_a_criterion_brings_its_own_threshold(tiny):
    tiny.generation_config.sampler = "diffusion_forcing"
    tiny.generation_config.sampler_config = {"exit_threshold": 1e9}
    quick, slow = (
        forcing(tiny, sampler=None, wavefront=1, inner_recurrence=1, **kwargs).stats.core_passes
        for kwargs in ({}, {"exit_criterion": "cosine"})
    )
    assert quick == 11 < slow


def test_what_a_generation_config_says_counts(tiny, width, monkeypatch):
    """Settings without a sampler's name are for whichever sampler runs; a preset alone names its sampler."""
    tiny.generation_config.sampler_config = {"wavefront": 6}
    assert width(sampler="diffusion_forcing") == 6
    monkeypatch.setitem(PRESETS["huginn_raven"], "fast", {"wavefront": 4})
    assert width(generation_config=GenerationConfig(sampler_preset="fast")) == 4
    with pytest.raises(ValueError, match="wavefront was set on the generation config itself"):
        tiny.generate(PROMPT, generation_config=GenerationConfig(wavefront=6), sampler="diffusion_forcing")
    tiny.generation_config.sampler_config = DiffusionForcingConfig(wavefront=5)
    assert width() == width(sampler="diffusion_forcing") == 5


def test_a_criterion_of_the_wrong_shape_is_refused(tiny):
    class PerRow(ExitCriterion):
        def __call__(self, refinement):
            return torch.ones(len(refinement.positions), dtype=torch.bool)

    for sampler in ("adaptive", "diffusion_forcing"):
        with pytest.raises(ValueError, match="PerRow returned"):
            forcing(tiny, sampler=sampler, exit_criterion=PerRow())


def test_a_processor_twice_is_refused():
    with pytest.raises(ValueError, match="'embedding_momentum' twice"):
        DiffusionForcingConfig(embedding_momentum=0.3, latent_processors=["embedding_momentum"])


def test_a_sampler_and_a_config_of_another_do_not_fit(tiny):
    with pytest.raises(ValueError, match="does not fit"):
        forcing(tiny, sampler_config=AdaptiveConfig())
    with pytest.raises(TypeError, match="sampler_config"):
        forcing(tiny, sampler_config=3)
    with pytest.raises(ValueError, match="belongs to sampler='diffusion_forcing'"):
        forcing(tiny, sampler="autoregressive", sampler_preset="fast")
    with pytest.raises(ValueError, match="did you mean 'balanced'"):
        forcing(tiny, sampler_preset="balance")


def test_the_sampler_alone_on_the_generation_config(tiny, tmp_path):
    tiny.generation_config.sampler = "diffusion_forcing"
    assert tiny.generate(PROMPT, max_new_tokens=6, return_dict_in_generate=True).stats.ticks > 0
    tiny.generation_config.sampler_config = DiffusionForcingConfig.from_preset("fast", seed=3).to_diff_dict()
    tiny.save_pretrained(tmp_path)
    text = json.loads((tmp_path / "generation_config.json").read_text())
    assert text["sampler"] == "diffusion_forcing" and text["sampler_config"]["seed"] == 3
    config = GenerationConfig.from_pretrained(tmp_path)
    assert GenerationConfig.from_dict(config.to_dict()).sampler_config == text["sampler_config"]


def test_a_newer_versions_setting_is_named(tiny):
    tiny.generation_config.sampler = "diffusion_forcing"
    tiny.generation_config.sampler_config = {"wavefront": 4, "hyperdrive": True}
    with pytest.raises(ValueError, match=r"no setting 'hyperdrive'.*newer"):
        tiny.generate(PROMPT)
