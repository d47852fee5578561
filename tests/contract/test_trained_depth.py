"""Depths far beyond those that a family was trained for: one warning, however they are asked for."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from support import FAMILIES
from support.matrix import cases

IDS = torch.tensor([[55, 2, 103, 95, 53]])
FIXED = {"ouro": 4, "nanbeige": 2, "hrm_text": 2}
"""Families whose every training example has the same depth, and that depth."""


@pytest.fixture
def said(warnings):
    transformers_logging.warning_once.cache_clear()
    return lambda: [record.getMessage() for record in warnings.records if "beyond" in record.getMessage()]


CALLS = {
    "plain": lambda model, steps: model.generate(IDS, max_new_tokens=3, num_steps=steps),
    "lossless": lambda model, steps: model.generate(
        IDS, max_new_tokens=3, num_steps=steps, sampler="speculative_wavefront"
    ),
    "adaptive": lambda model, steps: model.generate(IDS, max_new_tokens=3, num_steps=steps, sampler="adaptive"),
    "forward": lambda model, steps: model(IDS, num_steps=steps),
    "settings alone": lambda model, steps: model.decoding_config(num_steps=steps, sampler="autoregressive"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", FIXED)
def test_one_warning_beyond_twice_the_trained_depth(name, call, said):
    model, trained = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval(), FIXED[name]
    CALLS[call](model, trained)
    CALLS[call](model, 2 * trained)
    assert said() == []
    for _ in range(2):
        CALLS[call](model, 2 * trained + 1)
    (text,) = said()
    assert f"num_steps={2 * trained + 1} is far beyond the {trained} recurrences" in text
    assert name in text and f"use at most {trained}" in text


def test_the_base_model_warns_too(said):
    AutoModel.from_pretrained(FAMILIES["ouro"]).eval()(IDS, num_steps=9)
    assert len(said()) == 1


@pytest.mark.parametrize("name", cases([each for each in FAMILIES if each not in FIXED], keep=["huginn"]))
def test_families_trained_with_random_depths_do_not(name, said):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    assert getattr(model.config, "trained_recurrences", None) is None
    CALLS["plain"](model, 3 * model.config.mean_recurrence)
    assert said() == []


def test_training_at_another_depth_is_silent_and_counts(said):
    """`training_depth` is what the model is being trained for."""
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["nanbeige"], training_depth=6).train()
    model(IDS, num_steps=20)
    model.eval()(IDS, num_steps=12)
    assert said() == []
    model(IDS, num_steps=13)
    assert len(said()) == 1
