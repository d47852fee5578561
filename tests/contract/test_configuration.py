import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing import AutoregressiveConfig, DiffusionForcingConfig, SamplerConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize(
    "config", [AutoregressiveConfig(num_steps=8), DiffusionForcingConfig(wavefront=7, seed=[1, 2])]
)
def test_round_trips(config, tmp_path):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == SamplerConfig.from_pretrained(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["sampler_config.json"]


def test_a_file_of_another_sampler_is_refused(tmp_path):
    AutoregressiveConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="diffusion_forcing"):
        DiffusionForcingConfig.from_pretrained(tmp_path)


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(ValueError, match="'exit_treshold'; did you mean 'exit_threshold'"):
        DiffusionForcingConfig.from_dict({"exit_treshold": 0.1})


def test_defaults_follow_the_sampler():
    assert AutoregressiveConfig().kv_sharing == "none"
    assert DiffusionForcingConfig().kv_sharing == "last"


@given(st.dictionaries(st.sampled_from(DiffusionForcingConfig.fields()) | st.text(max_size=6), JSON, max_size=4) | JSON)
def test_any_json_is_a_config_or_a_clear_error(values):
    try:
        config = DiffusionForcingConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        assert str(error)
    else:
        assert DiffusionForcingConfig.from_dict(config.to_dict()) == config
