"""What people put around a model goes on working: adapters, compilation, quantization, casting, offload, threads."""

import copy
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, TorchAoConfig

from hf_diffusion_forcing import RavenForCausalLM
from support import HUGINN_MINI, left_pad, tiny_config

PROMPT = torch.tensor([[81, 58, 32, 68, 97, 110]])
SHORT = {"num_steps": 8, "seed": 0, "max_new_tokens": 8}
FORCING = {"sampler": "diffusion_forcing", "wavefront": 8, "inner_recurrence": 2} | SHORT
AUTOREGRESSIVE = {"sampler": "autoregressive"} | SHORT


@pytest.fixture
def torchao():
    """torchao's quantization. It is not required, and its newest version needs a newer torch than this package."""
    return pytest.importorskip("torchao.quantization")


@pytest.fixture(scope="module")
def adapted(huginn_mini):
    """huginn_mini under a LoRA adapter with random weights, so that it changes what the model says."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(copy.deepcopy(huginn_mini), config).eval()


def text(model, settings=FORCING) -> list[int]:
    return model.generate(input_ids=PROMPT, **settings)[0].tolist()


@pytest.mark.parametrize("settings", [FORCING, AUTOREGRESSIVE], ids=["diffusion_forcing", "autoregressive"])
def test_lora_adapter(adapted, huginn_mini, settings):
    with_adapter = text(adapted, settings)
    assert with_adapter != text(huginn_mini, settings)
    with adapted.disable_adapter():
        assert text(adapted, settings) == text(huginn_mini, settings)
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert type(merged) is RavenForCausalLM
    assert text(merged, settings) == with_adapter


def test_lora_adapter_saved_and_loaded(adapted, huginn_mini, tmp_path):
    """By PEFT, and by transformers' own `load_adapter`."""
    adapted.save_pretrained(tmp_path)
    by_peft = PeftModel.from_pretrained(copy.deepcopy(huginn_mini), tmp_path).eval()
    by_transformers = copy.deepcopy(huginn_mini)
    by_transformers.load_adapter(str(tmp_path))
    assert text(by_peft) == text(by_transformers) == text(adapted)


def test_only_the_adapter_learns(adapted):
    model = copy.deepcopy(adapted).train()
    model(input_ids=PROMPT, labels=PROMPT).loss.backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {name for name, _ in model.named_parameters() if "lora_" in name}


def compiled_texts_are_equal(tiny, backend: str) -> None:
    """Wrapped (`torch.compile`: generate() then calls the model below) and in place (`Module.compile`)."""
    short = {"num_steps": 2, "seed": 0, "max_new_tokens": 5}
    for settings in ({"sampler": "diffusion_forcing", "inner_recurrence": 1}, {"sampler": "autoregressive"}):
        plain = text(tiny, settings | short)
        in_place = copy.deepcopy(tiny)
        in_place.compile(backend=backend)
        assert text(in_place, settings | short) == plain
        assert text(torch.compile(copy.deepcopy(tiny), backend=backend), settings | short) == plain
    forward = {"input_ids": PROMPT, "num_steps": 2, "seeds": torch.tensor([0]), "use_cache": False}
    logits = torch.compile(tiny, backend=backend)(**forward).logits
    torch.testing.assert_close(logits, tiny(**forward).logits, atol=1e-4, rtol=1e-4)


@pytest.fixture
def small():
    """Small enough to compile in a second, with the vocabulary of the prompt."""
    torch.manual_seed(0)
    torch.compiler.reset()
    return RavenForCausalLM(tiny_config(vocab_size=128)).eval()


def test_compiled(small):
    compiled_texts_are_equal(small, "eager")


@pytest.mark.slow
def test_compiled_by_inductor(small):
    compiled_texts_are_equal(small, "inductor")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.5), (torch.float16, 0.05)])
def test_half_precision(huginn_mini, dtype, tolerance):
    """Close to float32, and law 2 holds in it: passes of equal width round equally."""
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, dtype=dtype)
    assert model.dtype == dtype
    forward = {"input_ids": PROMPT, "num_steps": 8, "seeds": torch.tensor([0])}
    with torch.no_grad():
        torch.testing.assert_close(
            model(**forward).logits.float(), huginn_mini(**forward).logits, atol=tolerance, rtol=0
        )
    batch = left_pad([PROMPT[0].tolist(), [81, 58]])
    one_by_one = model.generate(**batch, **FORCING | {"wavefront": 1, "inner_recurrence": 8})
    assert one_by_one.tolist() == model.generate(**batch, **AUTOREGRESSIVE, kv_sharing="last").tolist()


def test_offload_by_memory(huginn_mini, tmp_path):
    """accelerate finds the places itself: what does not fit in memory stays on disk."""
    model = AutoModelForCausalLM.from_pretrained(
        HUGINN_MINI, device_map="auto", max_memory={"cpu": "4MB"}, offload_folder=tmp_path
    )
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    for settings in (FORCING, AUTOREGRESSIVE):
        few = settings | {"max_new_tokens": 3}
        assert text(model, few) == text(huginn_mini, few)


def test_int8_weights_through_from_pretrained(torchao, huginn_mini, tmp_path):
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, quantization_config=config, device_map="cpu")
    assert type(model.transformer.core_block[0].mlp.fc.weight).__name__ == "Int8Tensor"
    forward = {"input_ids": PROMPT, "num_steps": 8, "seeds": torch.tensor([0])}
    with torch.no_grad():
        difference = (model(**forward).logits - huginn_mini(**forward).logits).abs().max()
    assert 0 < difference < 0.5
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert text(loaded) == text(model)


def test_int8_weights_through_quantize(torchao, huginn_mini):
    model = copy.deepcopy(huginn_mini)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    one_by_one = FORCING | {"wavefront": 1, "inner_recurrence": 8}
    assert text(model, one_by_one) == text(model, AUTOREGRESSIVE | {"kv_sharing": "last"})


def test_inference_mode(huginn_mini):
    with torch.inference_mode():
        inside = text(huginn_mini), text(huginn_mini, AUTOREGRESSIVE)
    assert inside == (text(huginn_mini), text(huginn_mini, AUTOREGRESSIVE))


def test_threads_share_a_model(huginn_mini, prompts):
    def decode(prompt):
        return huginn_mini.generate(torch.tensor([prompt]), **FORCING).tolist()

    alone = [decode(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(decode, prompts * 2)) == alone * 2


MAP_SCRIPT = """
import json
import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

import hf_diffusion_forcing

folder, prompts, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder)

def decode(row):
    return {"ids": model.generate(torch.tensor([row["prompt"]]), **settings)[0].tolist()}

rows = Dataset.from_dict({"prompt": prompts}).map(decode, num_proc=2)
print(json.dumps([list(ids) for ids in rows["ids"]]))
"""


def test_datasets_map_in_two_processes(huginn_mini, prompts):
    """A script of its own: torch's threads do not survive a fork once the parent has computed."""
    prompts = [prompt[:20] for prompt in prompts]
    command = [sys.executable, "-c", MAP_SCRIPT, str(HUGINN_MINI), json.dumps(prompts), json.dumps(FORCING)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    alone = [huginn_mini.generate(torch.tensor([prompt]), **FORCING)[0].tolist() for prompt in prompts]
    assert json.loads(result.stdout.splitlines()[-1]) == alone


@pytest.fixture
def accelerator(request):
    """Its state is one for the whole process: put back as it was."""
    AcceleratorState._reset_state()
    yield Accelerator(cpu=True, mixed_precision=request.param)
    AcceleratorState._reset_state()


@pytest.mark.parametrize("accelerator", ["no", "bf16"], indirect=True)
def test_accelerate_prepare(accelerator, huginn_mini):
    model = accelerator.prepare(copy.deepcopy(huginn_mini))
    batch = left_pad([PROMPT[0].tolist(), [81, 58]])
    for settings in (FORCING, AUTOREGRESSIVE):
        ids = model.generate(**batch, **settings)
        assert ids.shape == (2, 14)
        if accelerator.mixed_precision == "no":
            assert ids.tolist() == huginn_mini.generate(**batch, **settings).tolist()
        unwrapped = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        assert text(unwrapped, settings) == text(huginn_mini, settings)
        accelerator.prepare(unwrapped)
