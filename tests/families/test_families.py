"""Every family of checkpoints, by laws 1 to 9: parity, equivalence, batches, padding, ends, storage, memory."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.hub import export_checkpoint
from support import FAMILIES, INJECTED, left_pad, new_tokens
from support.matrix import cases, crossed

CLOSE = {"atol": 1e-4, "rtol": 0}
RETROFITTED = ("llama", "olmo")
FORCING = {"sampler": "diffusion_forcing", "wavefront": 8, "exit_threshold": 0.03, "inner_recurrence": 2}
SAMPLERS = {
    "plain": {},
    "autoregressive": {"sampler": "autoregressive"},
    "autoregressive shared": {"sampler": "autoregressive", "kv_sharing": "last"},
    "autoregressive 3 slots": {"sampler": "autoregressive", "kv_sharing": 3},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.2},
    "adaptive unshared": {"sampler": "adaptive", "exit_threshold": 0.2, "kv_sharing": "none"},
    "adaptive prefill": {"sampler": "adaptive", "exit_threshold": 0.3, "adaptive_prefill": True},
    "diffusion_forcing": FORCING,
    "diffusion_forcing unshared": FORCING | {"kv_sharing": "none"},
    "diffusion_forcing stabilised": FORCING | {"embedding_momentum": 0.1, "state_noise": 0.05},
    "speculative_wavefront": {"sampler": "speculative_wavefront"},
    "speculative_wavefront twice": {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 2},
}
CASES = [(each, name) for each in FAMILIES for name in SAMPLERS if each in INJECTED or "diffusion" not in name]
KEPT = [
    ("huginn", "plain"),
    ("huginn", "diffusion_forcing stabilised"),
    ("huginn", "speculative_wavefront"),
    ("llama", "adaptive prefill"),
    ("llama", "diffusion_forcing"),
    ("llama", "speculative_wavefront twice"),
    ("olmo", "autoregressive"),
    ("olmo", "diffusion_forcing unshared"),
    ("olmo", "adaptive"),
    ("ouro", "adaptive unshared"),
    ("ouro", "speculative_wavefront"),
    ("hrm_text", "adaptive unshared"),
    ("hrm_text", "speculative_wavefront"),
    ("nanbeige", "adaptive"),
    ("nanbeige", "autoregressive 3 slots"),
    ("nanbeige", "speculative_wavefront twice"),
    ("parcae", "adaptive"),
    ("parcae", "adaptive prefill"),
    ("parcae", "diffusion_forcing stabilised"),
    ("parcae", "speculative_wavefront"),
]
"""Every family with several samplers, and every sampler with some family."""
every_case = pytest.mark.parametrize(("family", "name"), cases(CASES, KEPT), indirect=["family"])
ROWS = [[55, 2, 103, 95, 53], [61, 88], [37, 19, 7, 120, 69, 125, 106, 81], [14]]
SEEDED = {"seed": 3, "max_new_tokens": 8, "num_steps": 4}


def load(name):
    return AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()


@pytest.fixture(scope="module", params=RETROFITTED)
def retrofitted(request):
    return load(request.param), load_file(FAMILIES[request.param] / "golden.safetensors")


@pytest.fixture(scope="module")
def ouro():
    return load("ouro")


@pytest.fixture(scope="module")
def ouro_golden():
    return load_file(FAMILIES["ouro"] / "golden.safetensors")


# --- law 1: the published reference implementations ---


@pytest.mark.parametrize(("num_steps", "use_cache"), crossed([1, 4, 8], [True, False], keep=[(1, False), (8, True)]))
@torch.no_grad()
def test_law_1_retrofitted(retrofitted, num_steps, use_cache):
    model, golden = retrofitted
    output = model(golden["input_ids"], num_steps=num_steps, state_scale=0.0, use_cache=use_cache)
    torch.testing.assert_close(output.logits, golden[f"logits_{num_steps}"], **CLOSE)
    torch.testing.assert_close(output.latents, golden[f"latents_{num_steps}"], **CLOSE)


@torch.no_grad()
def test_law_1_retrofitted_token_by_token(retrofitted):
    model, golden = retrofitted
    cache, logits = model.new_cache(8, "none"), []
    for ids in golden["input_ids"].split([16] + [1] * 8, dim=1):
        logits.append(model(ids, num_steps=8, state_scale=0.0, cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), golden["cached_logits_8"], **CLOSE)


@pytest.mark.parametrize(("num_steps", "use_cache"), crossed([1, 2, 4], [True, False], keep=[(1, False), (4, True)]))
@torch.no_grad()
def test_law_1_ouro(ouro, ouro_golden, num_steps, use_cache):
    gates = []
    output = ouro(
        ouro_golden["input_ids"],
        num_steps=num_steps,
        use_cache=use_cache,
        on_recurrence=lambda s, before: gates.append(ouro.exit_gate(s)),
    )
    torch.testing.assert_close(output.logits, ouro_golden[f"logits_T{num_steps}"], **CLOSE)
    torch.testing.assert_close(torch.stack(gates), ouro_golden["exit_gate_logits"][:num_steps, ..., 0], **CLOSE)
    if num_steps == 4:
        torch.testing.assert_close(output.latents, ouro_golden["hidden_T4"], **CLOSE)


@pytest.mark.parametrize("sampler", [None, "autoregressive", "speculative_wavefront"])
def test_law_1_ouros_greedy_tokens(ouro, ouro_golden, sampler):
    ids = ouro.generate(ouro_golden["input_ids"][:1, :12], max_new_tokens=24, sampler=sampler)
    assert ids.tolist() == ouro_golden["greedy_T4"].tolist()


# --- laws 2 to 6 ---


@pytest.mark.parametrize(
    ("kv_sharing", "do_sample"), crossed(["last", "none", 3], [False, True], keep=[("last", False), ("none", True)])
)
def test_law_2_one_position_at_a_time_is_autoregression(family, kv_sharing, do_sample):
    common = SEEDED | {"kv_sharing": kv_sharing, "do_sample": do_sample}
    one = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 4}
    if not family.has_injected_embedding:
        # The other sampler of one position at a time: a criterion that never stops it.
        one = {"sampler": "adaptive", "exit_threshold": 0.0}
    expected = family.generate(**left_pad(ROWS), sampler="autoregressive", **common)
    assert family.generate(**left_pad(ROWS), **one, **common).tolist() == expected.tolist()


# Plain sampling draws from torch's generator, one stream for the batch.
@pytest.mark.parametrize(
    ("family", "name", "do_sample"),
    cases(
        [(*case, do_sample) for case in CASES for do_sample in (False, True) if not (do_sample and case[1] == "plain")],
        keep=[(*case, case[1] != "plain") for case in KEPT],
    ),
    indirect=["family"],
)
def test_law_3_rows_do_not_depend_on_their_batch(family, name, do_sample):
    common = SEEDED | SAMPLERS[name] | {"do_sample": do_sample}
    inputs = left_pad(ROWS)
    together = new_tokens(family.generate(**inputs, **common | {"seed": [3, 4, 5, 6]}), inputs["input_ids"].shape[1])
    for row, prompt in enumerate(ROWS):
        alone = family.generate(torch.tensor([prompt]), **common | {"seed": 3 + row})
        assert together[row] == new_tokens(alone, len(prompt))[0]


@every_case
def test_law_4_left_padding_changes_nothing(family, name):
    common = SEEDED | SAMPLERS[name]
    prompt = ROWS[2]
    padded = {
        "input_ids": torch.tensor([[9] * 7 + prompt]),
        "attention_mask": torch.tensor([[0] * 7 + [1] * len(prompt)]),
    }
    plain = family.generate(torch.tensor([prompt]), **common)
    assert new_tokens(family.generate(**padded, **common), 7 + len(prompt)) == new_tokens(plain, len(prompt))


@pytest.mark.parametrize(
    ("depths", "do_sample"),
    crossed(
        [(4, 1, None), (4, 2, None), (4, 1, 2), (8, 2, 4), (3, 1, None)],
        [False, True],
        keep=[((4, 1, 2), True), ((3, 1, None), False)],
    ),
)
def test_law_5_the_lossless_wavefront_is_autoregression(family, depths, do_sample):
    num_steps, draft_depth, second = depths
    common = {"num_steps": num_steps, "seed": 3, "max_new_tokens": 10, "do_sample": do_sample}
    depths = {"draft_depth": draft_depth, "second_draft_depth": second}
    for inputs in (left_pad(ROWS), {"input_ids": torch.tensor(ROWS[2:3])}):
        expected = family.generate(**inputs, sampler="autoregressive", **common)
        ids = family.generate(**inputs, sampler="speculative_wavefront", **depths, **common)
        assert ids.tolist() == expected.tolist()


def test_law_5_draft_depth_auto_and_the_preset(family):
    common = {"num_steps": min(8, family.config.mean_recurrence), "seed": 3, "max_new_tokens": 8}
    expected = family.generate(**left_pad(ROWS), sampler="autoregressive", **common).tolist()
    auto = family.generate(**left_pad(ROWS), sampler="speculative_wavefront", draft_depth="auto", **common)
    assert auto.tolist() == expected
    chosen = family.generate(**left_pad(ROWS), sampler_preset="auto", lossless=True, **common)
    assert chosen.tolist() == expected
    assert family.generate(**left_pad(ROWS), sampler_preset="lossless", **common).tolist() == expected


@pytest.mark.parametrize(
    ("family", "preset"),
    crossed(
        INJECTED,
        ["quality", "balanced", "fast", "auto"],
        keep=[("huginn", "quality"), ("llama", "balanced"), ("olmo", "fast"), ("parcae", "auto")],
    ),
    indirect=["family"],
)
def test_presets_fit_every_depth(family, preset):
    for num_steps in (1, 2, 4, None):
        settings = {"sampler_preset": preset, "num_steps": num_steps, "seed": 0, "max_new_tokens": 3}
        settings = {name: value for name, value in settings.items() if value is not None}
        assert family.generate(torch.tensor(ROWS[:1]), **settings).shape[1] == len(ROWS[0]) + 3


@pytest.mark.parametrize("settings", [{"sampler": "diffusion_forcing"}, {"sampler_preset": "fast"}])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in INJECTED], indirect=True)
def test_diffusion_forcing_is_refused_without_an_injected_embedding(family, settings):
    with pytest.raises(ValueError, match=r"sampler='diffusion_forcing'.*Use sampler='speculative_wavefront'"):
        family.generate(torch.tensor(ROWS[:1]), max_new_tokens=3, **settings)


@every_case
def test_law_6_every_call_ends(family, name):
    """Core weights that are NaN: nothing ever converges, and the budget ends every position."""
    common = SEEDED | SAMPLERS[name]
    broken = copy.deepcopy(family)
    with torch.no_grad():
        for parameter, tensor in broken.named_parameters():
            if "core_block" in parameter or "layers" in parameter:
                tensor.fill_(float("nan"))
    output = broken.generate(torch.tensor(ROWS[:1]), **common, return_dict_in_generate=True)
    assert output.sequences.shape[1] == len(ROWS[0]) + 8
    if hasattr(output, "stats"):
        assert output.stats.core_passes <= 4 * 8


# --- laws 7 to 9 ---


STORED = ("diffusion_forcing", "adaptive", "speculative_wavefront", "autoregressive")


@pytest.mark.parametrize(
    ("family", "sampler"),
    cases(
        [case for case in CASES if case[1] in STORED],
        keep=[
            ("huginn", "autoregressive"),
            ("llama", "diffusion_forcing"),
            ("olmo", "adaptive"),
            ("ouro", "speculative_wavefront"),
            ("hrm_text", "speculative_wavefront"),
            ("nanbeige", "speculative_wavefront"),
            ("parcae", "diffusion_forcing"),
        ],
    ),
    indirect=["family"],
)
def test_law_7_save_load_generate(family, sampler, tmp_path):
    settings = {"num_steps": 4, "seed": 5}
    flagged = family.generate(torch.tensor(ROWS[:1]), max_new_tokens=8, sampler=sampler, **settings)
    stored = copy.deepcopy(family)
    stored.generation_config.sampler, stored.generation_config.sampler_config = sampler, settings
    stored.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(family)
    assert loaded.generate(torch.tensor(ROWS[:1]), max_new_tokens=8).tolist() == flagged.tolist()
    assert GenerationConfig.from_pretrained(tmp_path).sampler == sampler


@torch.no_grad()
def test_saved_tensors_are_the_loaded_ones(family, tmp_path):
    """Sharded, too."""
    family.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    for name, tensor in family.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@every_case
def test_law_8_lengths_and_ends_are_exact(family, name):
    common = SEEDED | SAMPLERS[name] | {"do_sample": name != "plain", "pad_token_id": 0}
    inputs = left_pad(ROWS)
    width = inputs["input_ids"].shape[1]
    texts = new_tokens(family.generate(**inputs, **common), width)
    assert {len(text) for text in texts} == {8}
    for length in (1, 5):
        short = new_tokens(family.generate(**inputs, **common | {"max_new_tokens": length}), width)
        assert short == [text[:length] for text in texts]
    end = texts[0][4]
    ended = new_tokens(family.generate(**inputs, **common, eos_token_id=end), width)
    for row, text in zip(ended, texts, strict=True):
        stop = text.index(end) + 1 if end in text else len(text)
        assert row[:stop] == text[:stop] and set(row[stop:]) <= {0}


@pytest.mark.parametrize(("kv_sharing", "slots"), [("last", 1), ("none", 4), (3, 3)])
def test_law_9_the_cache_holds_what_it_says(family, kv_sharing, slots):
    common = {"sampler": "autoregressive", "kv_sharing": kv_sharing, "num_steps": 4, "max_new_tokens": 5, "seed": 0}
    cache = family.generate(**left_pad(ROWS), **common, use_cache=True, return_dict_in_generate=True).cache
    config = family.config
    core = cache.num_core_layers
    entry = 2 * len(ROWS) * config.num_key_value_heads * (cache.capacity + 1) * config.head_dim * 4
    assert cache.nbytes == entry * (cache.num_layers - core + slots * core)


# --- what else must hold for all ---


def test_two_families_generate_in_one_process():
    """At the same time, in threads: nothing is shared between models."""
    settings = {"sampler": "speculative_wavefront", "num_steps": 4, "max_new_tokens": 8, "seed": 1, "do_sample": True}
    models = {name: load(name) for name in FAMILIES}
    inputs = left_pad(ROWS)
    alone = {name: model.generate(**inputs, **settings).tolist() for name, model in models.items()}
    with ThreadPoolExecutor(len(models)) as pool:
        running = {name: pool.submit(model.generate, **inputs, **settings) for name, model in models.items()}
    assert {name: future.result().tolist() for name, future in running.items()} == alone
    assert len({str(ids) for ids in alone.values()}) == len(FAMILIES)


def test_every_family_is_exported_with_the_lossless_preset(family, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint())
    if not family.has_injected_embedding:
        with pytest.raises(ValueError, match=r"preset='balanced' uses diffusion_forcing.*use preset='lossless'"):
            export_checkpoint(family, tokenizer, tmp_path / "refused")
        assert not (tmp_path / "refused").exists()
    out = export_checkpoint(family, tokenizer, tmp_path / "out", "lossless")
    loaded = AutoModelForCausalLM.from_pretrained(out)
    common = {"num_steps": min(8, family.config.mean_recurrence), "max_new_tokens": 6, "seed": 0}
    output = loaded.generate(torch.tensor(ROWS[:1]), **common, return_dict_in_generate=True)
    expected = family.generate(torch.tensor(ROWS[:1]), sampler="autoregressive", **common)
    assert output.sequences.tolist() == expected.tolist() and output.stats.draft_depth > 0


def test_bfloat16(family):
    model = copy.deepcopy(family).to(torch.bfloat16)
    for name in ("autoregressive", "adaptive", "speculative_wavefront"):
        ids = model.generate(**left_pad(ROWS), **SEEDED | SAMPLERS[name])
        assert ids.shape[1] == 8 + 8


def test_tensor_parallel_plan_names_modules(family):
    names = {name for name, _ in family.base_model.named_modules()}
    for pattern in family.config.base_model_tp_plan:
        assert pattern.replace("*", "0") in names


def test_the_context_is_not_overrun(family):
    with pytest.raises(ValueError, match=f"context of {family.config.max_position_embeddings}"):
        family.generate(torch.tensor(ROWS[:1]), max_new_tokens=family.config.max_position_embeddings)


# --- Ouro's exit gate ---


@torch.no_grad()
def expected_exit(model, ids, threshold):
    """Recurrences of the last of `ids`, and the token it then predicts, from the definition."""
    cache, remaining = model.new_cache(4, "none"), 1.0
    model(ids[:, :-1], cache=cache, num_steps=4)
    at = cache.place(torch.tensor([[ids.shape[1] - 1]]))
    s = model.embed(ids[:, -1:], at)
    for step in range(4):
        s = model.recur(s, None, at, step)
        remaining *= 1 - model.exit_gate(s).sigmoid().item()
        if 1 - remaining >= threshold:
            break
    return step + 1, model.decode(s, at).argmax().item()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.8, 0.9, 1.0])
@pytest.mark.parametrize("prompt", range(4))
def test_the_exit_gate_stops_where_its_cumulative_probability_says(ouro, prompt, threshold):
    first = ouro.generate(torch.tensor([ROWS[prompt]]), max_new_tokens=1)
    steps, token = expected_exit(ouro, first, threshold)
    output = ouro.generate(
        torch.tensor([ROWS[prompt]]),
        sampler="adaptive",
        exit_criterion="exit_gate",
        exit_threshold=threshold,
        kv_sharing="none",
        max_new_tokens=2,
        return_dict_in_generate=True,
    )
    assert output.stats.core_passes == steps
    assert output.sequences[0].tolist() == [*first[0].tolist(), token]


def test_the_exit_gate_leaves_at_different_depths(ouro):
    """Of 24 tokens some leave early and some late: the rule above is not met by a constant."""
    depths = set()
    for threshold in (0.3, 0.6, 0.8, 0.9):
        for row in ROWS:
            depths.add(expected_exit(ouro, torch.tensor([[*row, 5]]), threshold)[0])
    assert len(depths) >= 3


@pytest.mark.parametrize("kv_sharing", ["last", "none"])
def test_rows_exit_at_their_own_pace(ouro, kv_sharing):
    common = {"sampler": "adaptive", "exit_criterion": "exit_gate", "exit_threshold": 0.75, "kv_sharing": kv_sharing}
    common |= {"max_new_tokens": 10}
    together = new_tokens(ouro.generate(**left_pad(ROWS), **common), 8)
    for row, prompt in enumerate(ROWS):
        assert together[row] == new_tokens(ouro.generate(torch.tensor([prompt]), **common), len(prompt))[0]


def test_the_exit_gates_default_is_the_configs(ouro):
    common = {"sampler": "adaptive", "exit_criterion": "exit_gate", "max_new_tokens": 6, "kv_sharing": "none"}
    never = ouro.generate(torch.tensor(ROWS[:1]), **common, return_dict_in_generate=True)
    assert never.stats.core_passes == 4 * 5  # early_exit_threshold is 1.0
    assert never.sequences.tolist() == ouro.generate(torch.tensor(ROWS[:1]), max_new_tokens=6).tolist()
    eager = copy.deepcopy(ouro)
    eager.config.early_exit_threshold = 0.0
    assert eager.generate(torch.tensor(ROWS[:1]), **common, return_dict_in_generate=True).stats.core_passes == 5


@pytest.mark.parametrize("criterion", ["exit_gate", {"any": ["latent_difference", "exit_gate"]}])
@pytest.mark.parametrize("sampler", ["adaptive", "diffusion_forcing"])
def test_the_exit_gate_needs_a_gate(huginn_mini, sampler, criterion):
    with pytest.raises(ValueError, match=r"exit_criterion='exit_gate' needs a model with an exit gate; Raven.*none"):
        huginn_mini.generate(torch.tensor([[81, 58]]), sampler=sampler, exit_criterion=criterion, max_new_tokens=2)


def test_an_exit_threshold_of_the_gate_is_a_probability(ouro):
    with pytest.raises(ValueError, match=r"threshold=1.5 must be between 0 and 1"):
        ouro.generate(
            torch.tensor(ROWS[:1]), sampler="adaptive", exit_criterion="exit_gate", exit_threshold=1.5, max_new_tokens=2
        )


def test_adaptive_prefill_by_the_gate(ouro):
    common = {"sampler": "adaptive", "exit_criterion": "exit_gate", "adaptive_prefill": True, "max_new_tokens": 4}
    early = ouro.generate(torch.tensor(ROWS[2:3]), **common, exit_threshold=0.0, return_dict_in_generate=True)
    assert early.stats.prefill_core_passes == 1
    late = ouro.generate(torch.tensor(ROWS[2:3]), **common, exit_threshold=1.0, return_dict_in_generate=True)
    assert late.stats.prefill_core_passes == 4


def test_the_exit_gate_travels_with_settings(ouro, tmp_path):
    settings = {"exit_criterion": {"any": ["exit_gate", "kl"]}, "max_new_tokens": 6}
    expected = ouro.generate(torch.tensor(ROWS[:1]), sampler="adaptive", **settings).tolist()
    stored = copy.deepcopy(ouro)
    stored.generation_config.sampler = "adaptive"
    stored.generation_config.sampler_config = {"exit_criterion": settings["exit_criterion"]}
    stored.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generate(torch.tensor(ROWS[:1]), max_new_tokens=6).tolist() == expected


def test_a_gate_that_is_not_finite_never_lets_go(ouro):
    broken = copy.deepcopy(ouro)
    with torch.no_grad():
        broken.model.early_exit_gate.bias.fill_(float("nan"))
    common = {"sampler": "adaptive", "exit_criterion": "exit_gate", "exit_threshold": 0.1, "max_new_tokens": 4}
    output = broken.generate(torch.tensor(ROWS[:1]), **common, return_dict_in_generate=True)
    assert output.stats.core_passes == 4 * 3
