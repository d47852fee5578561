"""Checkpoints that were published as a pickle: read without executing anything, and converted by a script."""

import json
import os
import pickle
import runpy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from support import FAMILIES, ROOT

PATH = FAMILIES["parcae"]
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


@pytest.fixture
def said(warnings):
    """The warnings about pickles so far."""
    return lambda: [text for text in warnings.messages if "pickle" in text]


@pytest.fixture(scope="module")
def tensors():
    return load_file(PATH / "model.safetensors")


def folder(path, weights, name="pytorch_model.bin"):
    """A checkpoint as it is published: config.json and a pickle."""
    path.mkdir(exist_ok=True)
    shutil.copy(PATH / "config.json", path)
    torch.save(weights, path / name)
    return path


class Malicious:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mknod, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_of_tensors_loads_with_a_warning(tensors, tmp_path, said, name):
    path = folder(tmp_path, tensors, name)
    (path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 3, "eos_token_id": 7}))
    model = AutoModelForCausalLM.from_pretrained(path, training_depth=5).eval()
    (text,) = said()
    assert "scripts/convert_checkpoint.py" in text and name in text
    plain = AutoModelForCausalLM.from_pretrained(PATH).eval()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert (model.config.training_depth, model.name_or_path) == (5, str(path))
    ids = torch.tensor([[55, 2, 103]])
    assert model.generate(ids).tolist() == plain.generate(ids, max_new_tokens=3, eos_token_id=7).tolist()
    assert model.generation_config.eos_token_id == 7
    half = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, config=AutoConfig.from_pretrained(path))
    assert half.dtype == torch.bfloat16


def test_base_models_and_classifiers_load_it_too(tensors, tmp_path):
    path = folder(tmp_path, tensors)
    base = AutoModel.from_pretrained(path)
    assert torch.equal(base.wte.weight, tensors["transformer.wte.weight"])
    classifier = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    assert torch.equal(classifier.transformer.value_embeds["3"].weight, tensors["value_embeds.3.weight"])


def test_safetensors_come_first(tensors, tmp_path, said):
    path = folder(tmp_path, {"transformer.wte.weight": torch.zeros(2)})
    shutil.copy(PATH / "model.safetensors", path)
    AutoModelForCausalLM.from_pretrained(path)
    assert said() == []


@pytest.mark.parametrize("load", [AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("where", ["an entry", "the whole file"])
def test_nothing_is_executed(tensors, tmp_path, load, where):
    trap = tmp_path / "executed"
    bad = tensors | {"extra": Malicious(trap)} if where == "an entry" else Malicious(trap)
    path = folder(tmp_path / "checkpoint", bad)
    for keywords in ({}, {"config": AutoConfig.from_pretrained(path)}):
        with pytest.raises(
            ValueError, match=r"pytorch_model.bin cannot be loaded safely: .*mknod.*Nothing was executed"
        ):
            load(path, **keywords)
    with pytest.raises(ValueError, match=r"weights_only=False would execute"):
        load(path, weights_only=False)
    assert not trap.exists()
    # It would have been, by a loader that trusts the file.
    torch.load(path / "pytorch_model.bin", weights_only=False)
    assert trap.exists()


def test_files_of_something_else(tensors, tmp_path):
    with pytest.raises(ValueError, match=r"holds \['model', 'step'\] instead of tensors under their names"):
        AutoModelForCausalLM.from_pretrained(folder(tmp_path, {"model": tensors, "step": 3}))
    with pytest.raises(ValueError, match="holds list instead of tensors"):
        AutoModelForCausalLM.from_pretrained(folder(tmp_path, [tensors["freqs_cis"]]))
    path = folder(tmp_path, tensors)
    whole = (path / "pytorch_model.bin").read_bytes()
    for part in (b"", whole[: len(whole) // 2], b"no pickle at all", pickle.dumps({"a": 1})):
        (path / "pytorch_model.bin").write_bytes(part)
        with pytest.raises(ValueError, match=r"pytorch_model.bin (is damaged|cannot be loaded safely|holds)"):
            AutoModelForCausalLM.from_pretrained(path)


def test_tensors_that_do_not_fit(tensors, tmp_path):
    fewer = {name: tensor for name, tensor in tensors.items() if "value_embeds.3" not in name}
    with pytest.raises(ValueError, match=r"value embeddings for layers \[1, 5\].*needs them for \[1, 3, 5\]"):
        AutoModelForCausalLM.from_pretrained(folder(tmp_path, fewer))
    fewer = {name: tensor for name, tensor in tensors.items() if "C.weight" not in name}
    with pytest.raises(ValueError, match=r"1 missing \(expected, not found\): transformer.C.weight"):
        AutoModelForCausalLM.from_pretrained(folder(tmp_path, fewer))


@pytest.fixture(scope="module")
def convert():
    return runpy.run_path(str(SCRIPT))["main"]


def test_the_script_writes_safetensors(convert, tensors, tmp_path, said, capsys):
    tied = tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}
    path = folder(tmp_path / "published", tied)
    convert(str(path), tmp_path / "out")
    warned = len(said())
    assert "Wrote" in capsys.readouterr().out and not list(tmp_path.rglob("*.partial"))
    assert not (tmp_path / "out" / "pytorch_model.bin").exists() and not (path / "model.safetensors").exists()
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert len(written) == len(tensors) - 1
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in written.items())
    model, plain = (AutoModelForCausalLM.from_pretrained(each) for each in (tmp_path / "out", PATH))
    assert len(said()) == warned == 1
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_the_script_says_why_not(convert, tensors, tmp_path):
    trap = tmp_path / "executed"
    bad = folder(tmp_path / "bad", tensors | {"extra": Malicious(trap)})
    for checkpoint, output, message in (
        (bad, None, "cannot be loaded safely"),
        (PATH, None, "model.safetensors exists: pass --overwrite"),
        ("nobody/nothing", None, "is no folder: name an OUTPUT"),
        (PATH, tmp_path / "out", "has none of pytorch_model.bin, model.pt"),
    ):
        with pytest.raises(SystemExit, match=message):
            convert(str(checkpoint), output)
    assert not trap.exists() and not (bad / "model.safetensors").exists()
