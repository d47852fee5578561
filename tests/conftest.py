import os
import tempfile

if "PYTEST_XDIST_WORKER" not in os.environ:
    # Measured costs are kept here, and not in the user's own cache. The workers inherit it.
    HOME = tempfile.TemporaryDirectory(prefix="hf-home-of-tests-")
    os.environ["HF_HOME"] = HOME.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several workers with several threads each would wait for each other most of the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import logging
import shutil
import signal
from functools import partialmethod

import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_diffusion_forcing
from hf_diffusion_forcing import RavenForCausalLM
from support import FAMILIES, HUGINN_MINI, tiny_config

settings.register_profile("few", max_examples=10, deadline=None)
settings.register_profile("full", max_examples=60, deadline=None)


def pytest_configure(config):
    """Properties are tried on more examples where `full` is not deselected."""
    settings.load_profile("few" if "not full" in config.option.markexpr else "full")
    # What a script starts in the background ignores Ctrl+C, and so do the processes that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def huginn_mini():
    return AutoModelForCausalLM.from_pretrained(HUGINN_MINI).eval()


@pytest.fixture(scope="session", params=FAMILIES)
def family(request):
    """A model of every family in turn."""
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[request.param]).eval()
    # Random weights end a text by chance; tests that want an end name one.
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


@pytest.fixture(scope="session")
def golden():
    return load_file(HUGINN_MINI / "golden.safetensors")


@pytest.fixture(scope="session")
def prompts():
    """Four prompts of different lengths in huginn-mini's vocabulary (ASCII codes), as id lists."""
    return [[ord(c) for c in text] for text in json.loads((HUGINN_MINI / "prompts.json").read_text())]


@pytest.fixture(scope="session")
def bundled():
    path = hf_diffusion_forcing.bundled_checkpoint()
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="session")
def brief(tmp_path_factory):
    """The folder of the bundled checkpoint, with texts of 24 tokens and 8 recurrences unless a call says otherwise."""
    folder = shutil.copytree(hf_diffusion_forcing.bundled_checkpoint(), tmp_path_factory.mktemp("brief") / "bundled")
    for name, changes in (("config.json", {"mean_recurrence": 8}), ("generation_config.json", {"max_new_tokens": 24})):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))
    heads = folder / "decoding_heads.safetensors"
    with safe_open(heads, "pt") as opened:
        facts = json.loads(opened.metadata()["decoding_heads"])
    save_file(load_file(heads), heads, {"decoding_heads": json.dumps(facts | {"depth": 8})})
    return str(folder)


@pytest.fixture
def few_tasks(monkeypatch):
    """lm-evaluation-harness reads no more than the tasks it is given: the thousands of its own take it many seconds."""
    manager = pytest.importorskip("lm_eval.tasks", reason="not installed: pip install '.[lm-eval]'").TaskManager
    monkeypatch.setattr(manager, "__init__", partialmethod(manager.__init__, include_defaults=False))


@pytest.fixture
def warnings(caplog):
    """`caplog` with the warnings of transformers' loggers, which do not propagate otherwise."""
    logger = logging.getLogger("transformers")
    logger.warning_once.cache_clear()  # another test may have caused the same one
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog
    logger.propagate = False


@pytest.fixture
def tiny():
    """A model with random weights: it converges nowhere in particular, and every draft is a guess."""
    torch.manual_seed(0)
    return RavenForCausalLM(tiny_config()).eval()
