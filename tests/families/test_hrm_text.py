"""HRM-Text: transformers' own class and weights, with bidirectional prompts.

Samplers, laws and storage by the suites of all families; here what is particular to this one.
"""

import copy
import inspect
import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing import HrmTextConfig, HrmTextForCausalLM, enable_recurrent_depth
from hf_diffusion_forcing.generation.row import Row
from support import FAMILIES, FIXTURES, left_pad, new_tokens
from support.matrix import cases, crossed

PATH = FAMILIES["hrm_text"]
CLOSE = {"atol": 1e-4, "rtol": 0}
ROWS = [[55, 2, 103, 95, 53], [61, 88], [37, 19, 7, 120, 69, 125, 106, 81], [14]]
GREEDY = {"max_new_tokens": 24, "eos_token_id": None}
SAMPLERS = (None, "autoregressive", "speculative_wavefront")


@pytest.fixture(scope="module")
def model():
    model = AutoModelForCausalLM.from_pretrained(PATH).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def golden():
    return load_file(PATH / "golden.safetensors")


def plain(**changes):
    """The checkpoint in transformers' own class."""
    model = transformers.HrmTextForCausalLM.from_pretrained(PATH, **changes).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def random_plain(seed, **changes):
    """A small model of transformers' own class with random weights and another shape."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0}
    model = transformers.HrmTextForCausalLM(transformers.HrmTextConfig(**sizes | changes)).eval()
    with torch.no_grad():
        model.model.z_L_init.normal_()  # published weights have one; a new model has zeros
    return model


# --- law 1: golden outputs, and transformers' own class beside it ---


@pytest.mark.parametrize("use_cache", [False, True])
@torch.no_grad()
def test_law_1_golden_logits_and_states(model, golden, use_cache):
    ids, block = golden["input_ids"], golden["token_type_ids"]
    output = model(ids, use_cache=use_cache, output_hidden_states=True)
    torch.testing.assert_close(output.logits, golden["logits_causal"], **CLOSE)
    torch.testing.assert_close(output.latents, golden["state_causal_8H"], **CLOSE)
    for states, high, low in zip(output.hidden_states[1:3], ("4H", "8H"), ("3L", "7L"), strict=True):
        expected = torch.cat((golden[f"state_causal_{high}"], golden[f"state_causal_{low}"]), dim=-1)
        torch.testing.assert_close(states, expected, **CLOSE)
    for num_steps, name in ((2, "logits_prefix"), (1, "logits_prefix_4H")):
        logits = model(ids, token_type_ids=block, num_steps=num_steps, use_cache=use_cache).logits
        torch.testing.assert_close(logits, golden[name], **CLOSE)


@torch.no_grad()
def test_law_1_a_block_and_then_token_by_token(model, golden):
    ids, block = golden["input_ids"], golden["token_type_ids"]
    cache = model.new_cache(2, "none")
    logits = [model(ids[:, :12], token_type_ids=block[:, :12], cache=cache).logits]
    for column in range(12, 24):
        new = slice(column, column + 1)
        logits.append(model(ids[:, new], token_type_ids=block[:, new], cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), golden["cached_logits_prefix"], **CLOSE)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_law_1_golden_texts(model, golden, sampler):
    ids = golden["input_ids"][:1, :12]
    padded = {"input_ids": golden["padded_input_ids"], "attention_mask": golden["padded_attention_mask"]}
    block = {"token_type_ids": golden["padded_attention_mask"]}
    for name, inputs in {
        "greedy_causal": {"input_ids": ids},
        "greedy_prefix": {"input_ids": ids, "token_type_ids": torch.ones_like(ids)},
        "greedy_padded_causal": padded,
        "greedy_padded_prefix": padded | block,
    }.items():
        assert model.generate(**inputs, sampler=sampler, **GREEDY).tolist() == golden[name].tolist(), name


SHAPES = [
    {},
    {"H_cycles": 3, "L_cycles": 1, "num_hidden_layers": 2},
    {"attention_bias": True, "mlp_bias": True, "L_cycles": 2, "hidden_act": "gelu"},
    {"prefix_lm": False, "tie_word_embeddings": True},
]


@pytest.mark.parametrize(("shape", "sampler"), crossed(range(4), SAMPLERS, keep=[(i, SAMPLERS[2]) for i in range(4)]))
def test_law_1_texts_are_those_of_transformers(shape, sampler):
    """Whichever positions the block has, with and without padding, alone and in a batch."""
    own = random_plain(shape, **SHAPES[shape])
    adapted = enable_recurrent_depth(copy.deepcopy(own))
    call = {"max_new_tokens": 12, "eos_token_id": None, "pad_token_id": 0}
    inputs = left_pad([[row % 61 for row in ids] for ids in ROWS])
    mask = inputs["attention_mask"]
    blocks = [None]
    if own.config.prefix_lm:
        first_half = mask * (mask.cumsum(-1) <= mask.sum(-1, keepdim=True) // 2)
        blocks += [mask, first_half, mask - first_half, torch.ones_like(mask), mask * (torch.arange(8) % 3 > 0)]
    for block in blocks:
        given = inputs if block is None else inputs | {"token_type_ids": block}
        expected = own.generate(**given, **call).tolist()
        assert adapted.generate(**given, sampler=sampler, **call).tolist() == expected
        last = {name: tensor[2:3] for name, tensor in given.items() if name != "attention_mask"}
        expected = own.generate(**last, **call).tolist()
        assert adapted.generate(**last, sampler=sampler, **call).tolist() == expected


def test_beams_and_decoding_without_a_cache_are_those_of_transformers():
    """(Without a cache, transformers itself would make the new tokens a part of the block.)"""
    own = random_plain(1)
    adapted = enable_recurrent_depth(copy.deepcopy(own))
    inputs = left_pad([[3, 1, 4, 1, 5], [9, 2]])
    inputs["token_type_ids"] = inputs["attention_mask"]
    call = {"max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    expected = own.generate(**inputs, **call).tolist()
    assert adapted.generate(**inputs, use_cache=False, **call).tolist() == expected
    expected = own.generate(**inputs, num_beams=3, **call).tolist()
    assert adapted.generate(**inputs, num_beams=3, **call).tolist() == expected


@torch.no_grad()
def test_embeddings_in_place_of_ids(model):
    inputs = left_pad(ROWS)
    mask = {"attention_mask": inputs["attention_mask"], "token_type_ids": inputs["attention_mask"]}
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for sampler in SAMPLERS:
        expected = model.generate(inputs["input_ids"], **mask, sampler=sampler, max_new_tokens=6)
        alone = model.generate(inputs_embeds=embeds, **mask, sampler=sampler, max_new_tokens=6)
        assert alone.tolist() == expected[:, 8:].tolist()


# --- laws 3 to 5, with a bidirectional prompt ---

PROMPTED = {
    "autoregressive": {"sampler": "autoregressive"},
    "autoregressive shared": {"sampler": "autoregressive", "kv_sharing": "last"},
    "speculative_wavefront": {"sampler": "speculative_wavefront"},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.5, "num_steps": 4},
    "adaptive prefill": {"sampler": "adaptive", "exit_threshold": 0.5, "num_steps": 4, "adaptive_prefill": True},
}
every_sampler = pytest.mark.parametrize("name", PROMPTED)


@every_sampler
def test_laws_3_and_4_a_row_is_what_it_is_alone(model, name):
    """In a batch and with padding, sampled; with a block of all of the prompt, and of its first half."""
    common = PROMPTED[name] | {"do_sample": True, "max_new_tokens": 8}
    inputs = left_pad(ROWS)
    mask = inputs["attention_mask"]
    for block in (mask, mask * (mask.cumsum(-1) <= mask.sum(-1, keepdim=True) // 2)):
        together = new_tokens(model.generate(**inputs, token_type_ids=block, seed=[3, 4, 5, 6], **common), 8)
        for row, prompt in enumerate(ROWS):
            own = block[row : row + 1, 8 - len(prompt) :]
            alone = model.generate(torch.tensor([prompt]), token_type_ids=own, seed=3 + row, **common)
            assert together[row] == new_tokens(alone, len(prompt))[0]


@pytest.mark.parametrize(("num_steps", "do_sample"), crossed([2, 3, 4], [False, True], keep=[(2, True), (4, False)]))
def test_law_5_the_lossless_wavefront_is_autoregression(model, num_steps, do_sample):
    inputs = left_pad(ROWS)
    common = {"token_type_ids": inputs["attention_mask"], "num_steps": num_steps, "do_sample": do_sample, "seed": 3}
    expected = model.generate(**inputs, sampler="autoregressive", max_new_tokens=16, **common)
    output = model.generate(
        **inputs, sampler="speculative_wavefront", max_new_tokens=16, return_dict_in_generate=True, **common
    )
    assert output.sequences.tolist() == expected.tolist()
    causal = model.generate(**inputs, sampler="autoregressive", max_new_tokens=16, **common | {"token_type_ids": None})
    assert causal.tolist() != expected.tolist()


def test_the_adaptive_sampler_that_never_exits_is_autoregression(model):
    inputs = left_pad(ROWS)
    common = {"token_type_ids": inputs["attention_mask"], "kv_sharing": "none", "max_new_tokens": 8, "seed": 3}
    expected = model.generate(**inputs, sampler="autoregressive", **common).tolist()
    never = {"sampler": "adaptive", "exit_threshold": 0.0}
    for adaptive_prefill in (False, True):
        assert model.generate(**inputs, **never, adaptive_prefill=adaptive_prefill, **common).tolist() == expected


@pytest.mark.parametrize(
    ("first", "count", "whole"),
    [(0, 1, 1), (0, 2, 2), (0, 3, 2), (0, 4, 2), (0, 5, 5), (1, 2, 1), (2, 2, 0), (5, 1, 1)],
)
def test_a_block_freezes_as_a_whole(first, count, whole):
    row = Row(None, 0, list(range(8)), 0, 0, 20, block=[False, False, True, False, True, False, False, False])
    assert row.count_with_whole_block(first, count) == whole


# --- law 9 and sizes ---


@pytest.mark.parametrize(("kv_sharing", "slots"), [("last", 1), ("none", 2)])
def test_law_9_bytes_of_the_cache(model, kv_sharing, slots):
    """A pass of a stack has keys and values of its own: 4 passes a cycle, of 2 layers each."""
    output = model.generate(
        torch.tensor([ROWS[0]]),
        sampler="autoregressive",
        kv_sharing=kv_sharing,
        max_new_tokens=4,
        return_dict_in_generate=True,
    )
    assert output.cache.nbytes == 2 * 4 * 2 * slots * 4 * 16 * 4 * (output.cache.capacity + 1)


def test_the_published_shape():
    """On the meta device: parameters, and a token's bytes in bfloat16 as the documentation says."""
    config = AutoConfig.from_pretrained(FIXTURES / "published" / "hrm-text-1b")
    assert (config.mean_recurrence, config.num_layers_per_stack, config.num_hidden_layers) == (2, 16, 128)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert type(model) is HrmTextForCausalLM
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_182_795_264
    for kv_sharing, kilobytes in (("last", 384), ("none", 768)):
        cache = model.new_cache(2, kv_sharing)
        entries = sum(cache.slots(layer) for layer in range(cache.num_layers))
        assert entries * 2 * config.num_attention_heads * config.head_dim * 2 == kilobytes * 1024


# --- the class: loaded, enabled, saved ---


def test_a_model_in_memory_is_enabled_without_a_copy(golden):
    own = plain()
    before = {name: tensor.data_ptr() for name, tensor in own.state_dict().items()}
    ids, config = golden["input_ids"], own.config
    with torch.no_grad():
        expected = own(ids, token_type_ids=golden["token_type_ids"]).logits
        inside = own.model(ids).last_hidden_state
    enabled = enable_recurrent_depth(own)
    assert enabled is own and type(own) is HrmTextForCausalLM and own.config is config
    assert {name: tensor.data_ptr() for name, tensor in own.state_dict().items()} == before
    assert enable_recurrent_depth(enabled) is own
    with torch.no_grad():
        torch.testing.assert_close(own(ids, token_type_ids=golden["token_type_ids"]).logits, expected, **CLOSE)
        # Its modules by themselves are transformers' own still.
        assert torch.equal(own.model(ids).last_hidden_state, inside)
    assert own.generation_config.resolve(own.config).num_steps == 2


def test_the_auto_classes(golden):
    """From the package's config and from transformers' own; the base model is transformers' own."""
    for config in (AutoConfig.from_pretrained(PATH), transformers.HrmTextConfig.from_pretrained(PATH)):
        model = AutoModelForCausalLM.from_config(config)
        assert type(model) is HrmTextForCausalLM and type(model.config) is HrmTextConfig
        assert isinstance(model, transformers.HrmTextForCausalLM) and isinstance(config, transformers.HrmTextConfig)
    base = AutoModel.from_pretrained(PATH).eval()
    assert type(base) is transformers.HrmTextModel
    with torch.no_grad():
        state = base(golden["input_ids"]).last_hidden_state
    torch.testing.assert_close(state, golden["state_causal_8H"], **CLOSE)


def test_saved_files_are_those_of_transformers(model, tmp_path):
    plain().save_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(PATH)
    loaded.save_pretrained(tmp_path / "own")
    enable_recurrent_depth(plain()).save_pretrained(tmp_path / "enabled")
    expected = json.loads((tmp_path / "plain" / "config.json").read_text())
    # (plain() has no end of a text.)
    expected["eos_token_id"] = 11
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    assert "model.L_module.layers.0.attn.gqkv_proj.weight" in tensors
    for folder in ("own", "enabled"):
        config = json.loads((tmp_path / folder / "config.json").read_text()) | {"eos_token_id": 11}
        assert config == expected
        written = load_file(tmp_path / folder / "model.safetensors")
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    again = transformers.HrmTextForCausalLM.from_pretrained(tmp_path / "own").eval()
    ids = torch.tensor(ROWS[:1])
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, **CLOSE)


def test_wrong_layers_are_refused(tmp_path):
    config = json.loads((PATH / "config.json").read_text()) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((PATH / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"missing \(expected, not found\): model.H_module.layers.2"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


# --- training ---


@pytest.mark.parametrize("with_block", [False, True])
@pytest.mark.parametrize("checkpointing", cases([False, True], keep=[True]))
def test_gradients_are_those_of_transformers(with_block, checkpointing):
    """Where `L_bp_cycles` stops them, too."""
    own = plain().train()
    adapted = enable_recurrent_depth(copy.deepcopy(own))
    if checkpointing:
        adapted.gradient_checkpointing_enable()
    # On the right: a label must not be predicted from padding.
    inputs = {name: tensor.flip(-1) for name, tensor in left_pad([row[::-1] for row in ROWS]).items()}
    inputs["labels"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    if with_block:
        inputs["token_type_ids"] = inputs["attention_mask"]
    for each in (own, adapted):
        each(**inputs).loss.backward()
    trained = {name for name, parameter in own.named_parameters() if parameter.grad is not None}
    assert "model.z_L_init" not in trained and len(trained) > 20
    for name, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == (name in trained), name
        if name in trained:
            torch.testing.assert_close(parameter.grad, own.get_parameter(name).grad, atol=1e-5, rtol=1e-3)


def test_lora_trains_with_a_bidirectional_prompt(golden):
    model = AutoModelForCausalLM.from_pretrained(PATH).train()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    ids, block = golden["input_ids"], golden["token_type_ids"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
    losses = []
    for _ in range(12):
        losses.append(model(ids, labels=ids, token_type_ids=block).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    text = model.eval().generate(ids[:, :12], token_type_ids=block[:, :12], **GREEDY)
    assert text.shape == (2, 36)


@torch.no_grad()
def test_packed_rows_have_a_block_each(model):
    """Positions restart: each sequence is what it is alone."""
    ids, block = torch.tensor([ROWS[0] + ROWS[2]]), torch.tensor([[1, 1, 1, 0, 0] + [1] * 4 + [0] * 4])
    positions = torch.tensor([[*range(5), *range(8)]])
    packed = model(ids, position_ids=positions, token_type_ids=block, use_cache=False).logits
    for begin, end in ((0, 5), (5, 13)):
        alone = model(ids[:, begin:end], token_type_ids=block[:, begin:end]).logits
        torch.testing.assert_close(packed[:, begin:end], alone, **CLOSE)


def test_trainer_keeps_token_types():
    """It drops the columns that forward() does not name."""
    assert "token_type_ids" in inspect.signature(HrmTextForCausalLM.forward).parameters


# --- what is said, and refused ---


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_causal_prompt_is_read_with_one_warning(model, sampler, warnings):
    transformers.utils.logging.warning_once.cache_clear()
    ids = torch.tensor(ROWS[:1])
    model.generate(ids, token_type_ids=torch.ones_like(ids), sampler=sampler, max_new_tokens=2)
    assert warnings.records == []
    for _ in range(2):
        model.generate(ids, sampler=sampler, max_new_tokens=2)
    (record,) = warnings.records
    assert "Pass token_type_ids=attention_mask" in record.message


@torch.no_grad()
def test_a_prompt_in_two_calls_is_refused(model):
    ids, ones = torch.tensor(ROWS[2:3]), torch.ones(1, 8, dtype=torch.long)
    cache = model.new_cache(2, "none")
    model(ids[:, :4], token_type_ids=ones[:, :4], cache=cache)
    with pytest.raises(ValueError, match="token_type_ids marks a bidirectional prompt, but the cache holds 4 columns"):
        model(ids[:, 4:], token_type_ids=ones[:, 4:], cache=cache)
    assert cache.columns == 4
    for sampler in SAMPLERS:
        with pytest.raises(ValueError, match=r"the cache holds 4 columns already.*Pass all of it at once"):
            model.generate(ids, token_type_ids=ones, cache=cache, kv_sharing="none", sampler=sampler, max_new_tokens=2)
    # What the cache holds was read as a block; a causal continuation goes on from there.
    mixed = torch.cat((ones[:, :4], 0 * ones[:, 4:]), dim=1)
    expected = model.generate(ids, token_type_ids=mixed, max_new_tokens=4).tolist()
    assert model.generate(ids, token_type_ids=mixed, cache=cache, max_new_tokens=4).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefill_chunk_size": 4}, "prefill_chunk_size=4 would split a prompt of 8 tokens"),
        ({"prompt_lookup_num_tokens": 2}, "token_type_ids is not possible with assisted generation"),
        ({"token_type_ids": torch.ones(1, 5, dtype=torch.long)}, r"token_type_ids has shape \(1, 5\)"),
        ({"token_type_ids": torch.full((1, 8), 2)}, "token_type_ids has entries from 2 to 2"),
    ],
)
def test_other_prompts_are_refused(model, arguments, message):
    ids = torch.tensor(ROWS[2:3])
    arguments = {"token_type_ids": torch.ones_like(ids)} | arguments
    for sampler in SAMPLERS:
        if sampler and "prompt_lookup_num_tokens" in arguments:
            continue  # refused by every sampler, for all families
        with pytest.raises(ValueError, match=message):
            model.generate(ids, **arguments, sampler=sampler, max_new_tokens=2)


def test_a_chunk_as_long_as_the_prompt_is_one_piece(model):
    ids = torch.tensor(ROWS[2:3])
    call = {"token_type_ids": torch.ones_like(ids), "max_new_tokens": 6}
    expected = model.generate(ids, **call).tolist()
    for sampler in SAMPLERS:
        assert model.generate(ids, **call, prefill_chunk_size=8, sampler=sampler).tolist() == expected


def test_a_model_trained_without_a_prefix_takes_no_block():
    model = enable_recurrent_depth(random_plain(0, prefix_lm=False))
    ids = torch.tensor([[1, 2, 3]])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="token_type_ids has entries other than 0"):
            call(ids, token_type_ids=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='linear'"),
        ({"attn_implementation": "flex_attention"}, 'flex_attention"` is not supported'),
    ],
)
def test_settings_the_samplers_do_not_have_are_refused(changes, message):
    """By a config of the package, and for a model in memory, which stays as it was."""
    own = plain(**changes)
    with pytest.raises(ValueError, match=message):
        enable_recurrent_depth(own)
    assert type(own) is transformers.HrmTextForCausalLM and type(own.config) is transformers.HrmTextConfig
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(PATH, **changes)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="H_cycles=0 must be at least 1"):
        HrmTextConfig(H_cycles=0)
