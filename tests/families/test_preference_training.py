"""Fixed depth and noise in training, as preference losses need them; and what TRL asks of a config."""

import json
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from hf_diffusion_forcing import NanbeigeConfig, OuroConfig, RavenForCausalLM, bundled_checkpoint
from support import CLASSES, FAMILIES, tiny_config
from support.training import few_steps

IDS = torch.randint(0, 61, (2, 11), generator=torch.manual_seed(0))
FIXED = {"training_depth": 6, "state_seed": 3}


def train(folder, **fixed):
    """TRL's first losses, with a reference model of its own from the same path."""
    from trl import DPOConfig, DPOTrainer

    path = bundled_checkpoint()
    rows = [
        {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 5"},
        {"prompt": "3 + 4 =", "chosen": " 7", "rejected": "1"},
    ]
    arguments = few_steps(folder, DPOConfig, model_init_kwargs=fixed)
    tokenizer = AutoTokenizer.from_pretrained(path)
    trainer = DPOTrainer(path, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trls_dpo_loss_starts_at_ln_2(tmp_path):
    depth = AutoConfig.from_pretrained(bundled_checkpoint()).mean_recurrence
    losses = train(tmp_path, training_depth=depth, state_seed=0)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[1] < losses[0]


def test_depth_and_noise_are_fixed_in_training():
    model = RavenForCausalLM(tiny_config(**FIXED)).train()
    depths = []
    first, again = (model(IDS, on_recurrence=lambda *_: depths.append(1)).logits for _ in range(2))
    assert torch.equal(first, again) and len(depths) == 12
    # A row's noise does not depend on its batch, and evaluation has the same.
    torch.testing.assert_close(model(IDS[1:]).logits, first[1:])
    torch.testing.assert_close(model.eval()(IDS, num_steps=6).logits, first)


def test_each_setting_alone():
    model = RavenForCausalLM(tiny_config()).train()
    model.config.training_depth, depths = 4, []
    first, again = (model(IDS, on_recurrence=lambda *_: depths.append(1)).logits for _ in range(2))
    assert len(depths) == 8 and not torch.equal(first, again)
    model.config.training_depth, model.config.state_seed = None, 5
    first, again = (model(IDS, num_steps=3).logits for _ in range(2))
    assert torch.equal(first, again)
    lengths = set()
    for _ in range(8):
        depths.clear()
        model(IDS, on_recurrence=lambda *_: depths.append(1))
        lengths.add(len(depths))
    assert len(lengths) > 1


def test_what_the_call_says_overrides_the_config():
    model, depths = RavenForCausalLM(tiny_config(**FIXED)).train(), []
    first = model(IDS, num_steps=2, on_recurrence=lambda *_: depths.append(1)).logits
    assert len(depths) == 2 and not torch.equal(first, model(IDS, num_steps=2, seeds=torch.tensor([8, 9])).logits)


def test_generate_has_a_seed_of_its_own():
    model = RavenForCausalLM(tiny_config()).eval()
    common = {"sampler": "diffusion_forcing", "seed": 2, "max_new_tokens": 6}
    expected = model.generate(IDS, **common).tolist()
    model.config.state_seed, model.config.training_depth = 9, 2
    assert model.generate(IDS, **common).tolist() == expected


def test_the_settings_are_stored(tmp_path):
    RavenForCausalLM(tiny_config(**FIXED)).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.training_depth, config.state_seed) == (6, 3)


@pytest.mark.parametrize(
    "config_class", sorted({each.config for each in CLASSES.values()}, key=lambda each: each.__name__)
)
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"training_depth": 0}, "training_depth=0 must be at least 1"), ({"state_seed": 2**63}, "state_seed=.* 64 bits")],
)
def test_impossible_settings(config_class, settings, message):
    with pytest.raises(ValueError, match=message):
        config_class(**settings)


# --- auto_map ---


@pytest.mark.parametrize("config", [tiny_config(), OuroConfig(), NanbeigeConfig()])
def test_every_config_has_an_auto_map(config, tmp_path):
    """Trainers read it; a file does not need one that is empty."""
    assert config.auto_map == {} and config.auto_map is not type(config)().auto_map
    config.save_pretrained(tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    assert AutoConfig.from_pretrained(tmp_path).auto_map == {}
    assert "auto_map" not in config.to_dict()


def test_an_auto_map_of_a_checkpoint_stays(tmp_path):
    config = AutoConfig.from_pretrained(FAMILIES["ouro"])
    assert "AutoModelForCausalLM" in config.auto_map
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).auto_map == config.auto_map


def test_an_auto_map_can_be_written_into(tmp_path):
    """As transformers does for a class that is registered with `register_for_auto_class`."""
    config = tiny_config()
    config.auto_map["AutoModel"] = "modeling.Model"
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {"AutoModel": "modeling.Model"}
