"""The command `convert`: each tensor once, in one dtype, single or sharded."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.hub.conversion import convert
from support import FAMILIES
from support.commands import run


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_converted_and_back(name, tmp_path):
    """To float32 shards and from these to one bfloat16 file."""
    ids, seeds = torch.tensor([[81, 58, 32, 68]]), torch.tensor([1])
    original = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    count = convert(str(FAMILIES[name]), tmp_path / "shards", "float32", "300KB")
    assert count == sum(p.numel() for p in original.parameters())
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shards = AutoModelForCausalLM.from_pretrained(tmp_path / "shards").eval()
    assert torch.equal(shards(ids, seeds=seeds).logits, original(ids, seeds=seeds).logits)

    convert(str(tmp_path / "shards"), tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors.values()) == count  # a tied head once, no table of rotations
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    for key, tensor in original.state_dict().items():
        assert torch.equal(half.state_dict()[key], tensor.bfloat16()), key


def test_what_cannot_be_converted_is_refused(tmp_path):
    with pytest.raises(ValueError, match="dtype='int3' is unknown: use float32, bfloat16, float16"):
        convert(str(FAMILIES["ouro"]), tmp_path / "out", "int3")
    (tmp_path / "there").write_text("something")
    with pytest.raises(ValueError, match="is not empty"):
        convert(str(FAMILIES["ouro"]), tmp_path)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes((FAMILIES["ouro"] / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes((FAMILIES["ouro"] / "model.safetensors").read_bytes()[:1000])
    left = run("convert", tmp_path / "nowhere", tmp_path / "out")
    assert left.exit_code == 2 and "nowhere" in left.stderr
    assert run("convert", broken, tmp_path / "out").exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
    with pytest.warns(UserWarning, match="no tokenizer"):
        assert run("convert", FAMILIES["ouro"], tmp_path / "out").exit_code == 0
    assert run("convert", FAMILIES["ouro"], tmp_path / "out").exit_code == 2
    with pytest.warns(UserWarning, match="no tokenizer"):
        assert run("convert", FAMILIES["ouro"], tmp_path / "out", "--overwrite").exit_code == 0
