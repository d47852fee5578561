"""Parcae: golden outputs of the published code, value embeddings in every sampler, and what its config refuses."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing import ParcaeConfig, ParcaeForCausalLM
from hf_diffusion_forcing.cache import NoCache
from support import FAMILIES, SAMPLERS, left_pad
from support.matrix import crossed

PATH = FAMILIES["parcae"]
CLOSE = {"atol": 1e-4, "rtol": 0}
ROWS = [[55, 2, 103, 95, 53], [61, 88], [37, 19, 7, 120, 69, 125, 106, 81], [14]]
SMALL = {"vocab_size": 61, "n_embd": 32, "num_attention_heads": 2, "intermediate_size": 48, "block_size": 128}


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PATH).eval()


@pytest.fixture(scope="module")
def golden():
    return load_file(PATH / "golden.safetensors")


# --- law 1: the published code ---


@pytest.mark.parametrize(("steps", "use_cache"), crossed([1, 4, 8], [True, False], keep=[(1, False), (8, True)]))
@torch.no_grad()
def test_law_1_every_depth(model, golden, steps, use_cache):
    output = model(golden["input_ids"], num_steps=steps, state_scale=0.0, use_cache=use_cache)
    torch.testing.assert_close(output.logits, golden[f"logits_{steps}"], **CLOSE)
    torch.testing.assert_close(output.latents, golden[f"latents_{steps}"], **CLOSE)


@torch.no_grad()
def test_law_1_prelude(model, golden):
    at = NoCache().place(torch.arange(24).expand(2, 24), start=0)
    torch.testing.assert_close(model.embed(golden["input_ids"], at), golden["prelude"], **CLOSE)


@torch.no_grad()
def test_law_1_token_by_token(model, golden):
    cache, logits = model.new_cache(8, "none"), []
    for ids in golden["input_ids"].split([16] + [1] * 8, dim=1):
        logits.append(model(ids, num_steps=8, state_scale=0.0, cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), golden["cached_logits_8"], **CLOSE)


@pytest.mark.parametrize("settings", [{}, *({"sampler": name} for name in ("autoregressive", "speculative_wavefront"))])
def test_law_1_greedy_tokens(model, golden, settings):
    prompt = golden["input_ids"][:1, :12]
    ids = model.generate(prompt, max_new_tokens=24, state_scale=0.0, **settings)
    assert ids.tolist() == golden["greedy_8"].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "autoregressive", "kv_sharing": "last"},
        {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 8},
    ],
)
def test_law_1_greedy_tokens_with_shared_keys_and_values(model, golden, settings):
    ids = model.generate(golden["input_ids"][:1, :12], max_new_tokens=24, num_steps=8, state_scale=0.0, **settings)
    assert ids.tolist() == golden["greedy_shared_8"].tolist()


# --- value embeddings ---


@torch.no_grad()
def test_a_changed_draft_reaches_every_recurrence_two_ways(model):
    """By e, and by the value embeddings of the core's attention."""
    at = NoCache().place(torch.arange(3)[None], start=0)
    e = model.embed(torch.tensor([[5, 6, 7]]), at)
    s = model.initialize_state(e, at.positions, torch.tensor([0]))
    before = model.recur(s, e, at, 0)
    at.ids = torch.tensor([[5, 6, 8]])
    by_values = model.recur(s, e, at, 0)
    assert torch.equal(by_values[:, :2], before[:, :2]) and not torch.allclose(by_values[:, 2], before[:, 2], atol=1e-3)
    changed = model.embed(at.ids, NoCache().place(torch.arange(3)[None], start=0))
    at.ids = torch.tensor([[5, 6, 7]])
    by_e = model.recur(s, changed, at, 0)
    assert not torch.allclose(by_e[:, 2], before[:, 2], atol=1e-3) and not torch.allclose(by_e, by_values, atol=1e-3)


class Watched:
    """A model whose core and coda are watched: their value embeddings are those of the tokens last embedded there."""

    def __init__(self, model, monkeypatch):
        self.embedded, self.passes, self.rows = {}, 0, 0
        verbs = {name: getattr(model, name) for name in ("embed", "recur", "decode")}

        def embed(input_ids, at, inputs_embeds=None):
            self.embedded |= dict(zip(self.cells(at), input_ids.flatten().tolist(), strict=True))
            return verbs["embed"](input_ids, at, inputs_embeds)

        def recur(s, e, at, depth):
            self.check(at)
            return verbs["recur"](s, e, at, depth)

        def decode(s, at, *args, **kwargs):
            self.check(at)
            return verbs["decode"](s, at, *args, **kwargs)

        for verb in (embed, recur, decode):
            monkeypatch.setattr(model, verb.__name__, verb)

    @staticmethod
    def cells(at):
        """Row and position of everything in a pass."""
        rows = at.rows.expand_as(at.positions) + at.seats.start
        return list(zip(rows.flatten().tolist(), at.positions.flatten().tolist(), strict=True))

    def check(self, at):
        self.rows = max(self.rows, len(at.seats))
        if len(at.seats) < self.rows:
            return  # a row has ended, and others have moved to its seat
        self.passes += 1
        assert at.ids.flatten().tolist() == [self.embedded[cell] for cell in self.cells(at)]


CALLS = {name: settings for name, settings in SAMPLERS.items() if name != "plain"} | {
    "adaptive prefill": {"sampler": "adaptive", "exit_threshold": 0.3, "adaptive_prefill": True},
    "chunks": {"sampler": "diffusion_forcing", "wavefront": 4, "prefill_chunk_size": 3},
    "momentum": {"sampler": "diffusion_forcing", "wavefront": 4, "embedding_momentum": 0.3},
    "auto": {"sampler": "speculative_wavefront", "draft_depth": "auto"},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[2:3]], ids=["batch", "alone"])
def test_every_sampler_reads_the_value_embeddings_of_its_drafts(model, monkeypatch, name, rows):
    watched = Watched(model, monkeypatch)
    model.generate(**left_pad(rows), **CALLS[name], seed=1, num_steps=4, max_new_tokens=10)
    assert watched.passes > 10


@pytest.mark.parametrize("name", ["adaptive", "diffusion_forcing", "speculative_wavefront"])
def test_a_forward_hook_that_sees_the_batch_changes_nothing(model, name):
    """With one, the verbs run on a grid of all rows, and the placement is another."""
    common = SAMPLERS[name] | {"seed": 1, "num_steps": 4, "max_new_tokens": 10}
    expected = model.generate(**left_pad(ROWS), **common).tolist()
    hook = model.transformer.C.register_forward_hook(lambda module, args, output: None)
    try:
        assert model.generate(**left_pad(ROWS), **common).tolist() == expected
    finally:
        hook.remove()


def test_new_tokens_get_value_embeddings(model, tmp_path):
    larger = copy.deepcopy(model)
    larger.resize_token_embeddings(131)
    assert {each.weight.shape[0] for each in larger.transformer.value_embeds.values()} == {131}
    assert torch.equal(larger.transformer.value_embeds["1"].weight[:128], model.transformer.value_embeds["1"].weight)
    assert larger.generate(torch.tensor([[130, 3]]), max_new_tokens=4).shape == (1, 6)
    larger.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.padded_vocab_size == 131
    larger.resize_token_embeddings(100)
    assert larger.transformer.value_embeds["5"].weight.shape == (100, 64)


# --- files ---


def stored(folder, **changes):
    """The fixture in a folder, with another config.json."""
    shutil.copy(PATH / "model.safetensors", folder)
    values = json.loads((PATH / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({name: v for name, v in values.items() if v is not ...}))
    return folder


def test_a_config_without_model_type_is_recognised_by_its_class_name(tmp_path):
    assert "model_type" not in json.loads((PATH / "config.json").read_text())
    for auto in (AutoConfig, ParcaeConfig):
        config = auto.from_pretrained(PATH)
        assert isinstance(config, ParcaeConfig) and config.rope_parameters["rope_theta"] == 50000
    assert type(AutoModel.from_pretrained(PATH)).__name__ == "ParcaeModel"
    for name in ("OtherConfig", ...):
        with pytest.raises(ValueError, match="Unrecognized model"):
            AutoConfig.from_pretrained(stored(tmp_path, _class_name=name))
    # A model_type says more than a class name.
    assert AutoConfig.from_pretrained(stored(tmp_path, model_type="llama")).model_type == "llama"


def test_saved_files_have_the_published_names(model, tmp_path):
    model.save_pretrained(tmp_path / "causal")
    saved, published = load_file(tmp_path / "causal" / "model.safetensors"), load_file(PATH / "model.safetensors")
    assert saved.keys() == published.keys() - {"freqs_cis", "lm_head.weight"}
    assert all(torch.equal(tensor, published[name]) for name, tensor in saved.items())
    assert json.loads((tmp_path / "causal" / "config.json").read_text())["model_type"] == "parcae"
    base = AutoModel.from_pretrained(tmp_path / "causal")
    base.save_pretrained(tmp_path / "base")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("change", [{"n_layers_in_prelude": 3}, {"n_layers_in_coda": 1}, {"n_layers_in_prelude": 4}])
def test_value_embeddings_of_other_layers_are_refused(change, tmp_path):
    with pytest.raises(ValueError, match=r"value embeddings for layers \[1, 3, 5\].*needs them for \[.*Check n_layers"):
        AutoModelForCausalLM.from_pretrained(stored(tmp_path, **change))


REFUSED = {
    "injection_type": "linear",
    "nonlin_name": "GELU",
    "mlp_class_name": "GatedMLP",
    "norm_class_name": "LayerNorm",
    "block_class_name": "SandwichBlock",
    "prelude_norm": False,
    "qk_norm": False,
    "qk_bias": True,
    "bias": True,
    "logit_softcap": 30.0,
    "clip_qkv": 8.0,
    "init_strategy": "takase",
    "state_init": "zero",
}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_settings_that_released_files_do_not_have_are_refused(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"Not supported for parcae: {name}={value!r} \(supported: "):
        AutoConfig.from_pretrained(stored(tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 16}, "n_embd=16 must be at least 32"),
        ({"num_attention_heads": 3}, "n_embd=32 must be num_attention_heads=3 times head_dim=10"),
        ({"num_key_value_heads": 1}, "num_key_value_heads=1 must equal num_attention_heads=2"),
        ({"head_dim": 8}, "head_dim=8"),
        ({"num_attention_heads": 32}, "head_dim=1 must be even"),
        ({"padded_vocab_size": 60}, "padded_vocab_size=60 is smaller than vocab_size=61"),
        ({"mean_recurrence": 0}, "mean_recurrence=0"),
        ({"n_layers_in_coda": -1}, "n_layers_in_coda=-1"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"value_embed_layers": [6]}, r"value_embed_layers=\[6\] names layers that are none of the 6"),
        ({"recurrent_embedding_dimension": 64}, "recurrent_embedding_dimension=64 differs from n_embd=32"),
        ({"recurrent_num_attention_heads": 4}, "recurrent_num_attention_heads=4 differs"),
        ({"rope_settings": {"use_rope": False}}, r"rope_settings\['use_rope'\]=False"),
        ({"rope_settings": {"rope_condense_ratio": 2}}, r"rope_settings\['rope_condense_ratio'\]=2"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_type='llama3'"),
        ({"hidden_size": 64}, "n_embd=32 and hidden_size=64 are two names"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        ParcaeConfig(**SMALL | settings)


@pytest.mark.parametrize(("core", "recurrences", "backprop"), [(1, 3, 2), (3, 4, 1), (3, 5, 3)])
def test_gates_are_where_the_published_code_counts_them(core, recurrences, backprop, tmp_path):
    """Not always where value embeddings are; and they stay there when the depth of a checkpoint changes."""
    layers = {"n_layers_in_prelude": 2, "n_layers_in_recurrent_block": core, "n_layers_in_coda": 2}
    config = ParcaeConfig(**SMALL, **layers, mean_recurrence=recurrences, mean_backprop_depth=backprop)
    ids = [*range(2 + core), *(2 + core * recurrences + layer for layer in range(2))]
    assert config.ve_gate_layers == [layer for layer, n in enumerate(ids) if n % 2 == (core * backprop - 1) % 2]
    model = ParcaeForCausalLM(config).eval()
    base = model.transformer
    blocks = [*base.prelude, *base.core_block, *base.coda]
    gated = [block.attn.layer for block in blocks if hasattr(block.attn, "ve_gate")]
    assert gated == config.ve_gate_layers
    model.config.mean_recurrence += 1
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.generate(torch.tensor([[1, 2]]), max_new_tokens=3, seed=0).shape == (1, 5)
    assert again.config.ve_gate_layers == config.ve_gate_layers


def test_a_random_depth_has_its_mean():
    model = ParcaeForCausalLM(ParcaeConfig(**SMALL, mean_recurrence=8))
    torch.manual_seed(0)
    depths = torch.tensor([model.sample_depth() for _ in range(2000)]).float()
    assert depths.min() >= 1 and abs(depths.mean() - 8) < 0.3 and depths.max() > 14
