"""What `hf_diffusion_forcing.compat` says of transformers is so, and the cache goes by both its names."""

import ast
import configparser
import copy
import importlib
import inspect
import logging
import re
import warnings

import pytest
import torch
import transformers
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PrefixConstrainedLogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.cli.serving.model_manager import ModelManager

from hf_diffusion_forcing import (
    DiffusionForcingOutput,
    RavenConfig,
    RavenForCausalLM,
    RecurrentDepthModelOutput,
    RecurrentDepthOutput,
    compat,
    enable_recurrent_depth,
)
from hf_diffusion_forcing.lazy_registration import AUTO_CONFIG
from support import ROOT, SAMPLERS, left_pad, tiny_config
from support.looped_adapter import LoopedAdapter
from support.looped_model import LoopedConfig, LoopedLM
from support.training import few_steps

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
NAMES = ["cache", "past_key_values"]


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param] | {"seed": 1, "return_dict_in_generate": True, "max_new_tokens": 6}


@pytest.fixture
def silence(caplog):
    """A warning of Python's is an error; what transformers logs is collected, and none may be there at the end."""
    logging.Logger.warning_once.cache_clear()
    caplog.set_level(logging.WARNING, logger="transformers")
    library = logging.getLogger("transformers")
    before, library.propagate = library.propagate, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
        assert [record.getMessage() for record in caplog.records] == []
    finally:
        library.propagate = before


# --- the list ---


@pytest.mark.parametrize("name", compat.NAMES, ids=lambda name: name.path)
def test_a_name_is_where_it_was_read(name):
    assert name.exists() == name.is_expected(), name.why
    assert name.read_in and name.why
    assert name.path.startswith("torch") or set(name.read_in) <= set(compat.VERSIONS)


def test_nothing_is_missing():
    assert compat.missing() == []


@pytest.mark.parametrize(
    "path",
    [
        "transformers.nowhere:generate",
        "transformers:GenerationMixin.generates",
        "transformers:GenerationMixin.generate(inputz)",
        "transformers:GenerationMixin._sample(input_ids, streamers)",
        "transformers:PrefixConstrainedLogitsProcessor#_beams",
        "torch:ops.mkldnn._linear_pointwise(X, V)",
        "torch:ops.mkldnn._linear_pointwize",
    ],
)
def test_what_is_gone_is_told(monkeypatch, path):
    gone = compat.Name(path, compat.VERSIONS, "to show it")
    monkeypatch.setattr(compat.names, "NAMES", (*compat.NAMES, gone))
    assert compat.missing() == [f"{path} is gone: to show it"]


def test_the_module_that_registration_waits_for_is_in_the_list():
    assert AUTO_CONFIG in {name.path.partition(":")[0] for name in compat.NAMES}


# --- nothing goes past it ---

PACKAGE = ROOT / "hf_diffusion_forcing"
OUTSIDE = [path for path in sorted(PACKAGE.rglob("*.py")) if "compat" not in path.parts]
TREES = {path: ast.parse(path.read_text()) for path in OUTSIDE}
PUBLIC_MODULES = {
    "torch",
    "torch.distributed",
    "torch.distributed.tensor",
    "torch.nn",
    "torch.nn.functional",
    "transformers",
    "transformers.cache_utils",
    "transformers.generation",
    "transformers.generation.streamers",
    "transformers.modeling_outputs",
    "transformers.utils",
}
LISTED = {re.split(r"[.:#]", name.path.partition("(")[0])[-1] for name in compat.NAMES}
BASES = (GenerationMixin, PreTrainedModel, GenerationConfig, PreTrainedConfig, Cache, torch.nn.Module, ModelManager)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def defined(tree) -> set[str]:
    """Private names that a module gives to its own classes and objects."""
    functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
    return set(filter(is_private, functions | names | attributes))


def test_private_attributes_are_our_own():
    """`self._x` is ours or overridden and listed, `super()._x` is listed, and nobody else's `_x` is read or set."""
    own, wrong = set().union(*map(defined, TREES.values())), []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                of, name = ast.unparse(node.value), node.attr
                allowed = {"self": own | LISTED, "cls": own | LISTED, "super()": LISTED}.get(of, set())
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr"):
                name, allowed = getattr(node.args[1], "value", ""), set()
            else:
                continue
            if is_private(str(name)) and name not in allowed:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert not wrong, "reach these through hf_diffusion_forcing.compat"


def test_private_names_that_are_overridden_are_listed():
    overridden = {name for tree in TREES.values() for name in defined(tree) if any(hasattr(b, name) for b in BASES)}
    assert overridden and overridden <= LISTED


def test_undocumented_modules_are_imported_in_compat_alone():
    paths, wrong = {name.path.partition("(")[0] for name in compat.NAMES}, []
    # Whole modules too, which an import can name as a part of the package they are in.
    listed = {path.replace(":", ".") for path in paths} | {path.partition(":")[0] for path in paths} - PUBLIC_MODULES
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            for module, name in found:
                is_foreign = module.split(".")[0] in ("torch", "transformers")
                if is_foreign and (module not in PUBLIC_MODULES or is_private(name) or f"{module}.{name}" in listed):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {module} {name}")
    assert not wrong, "import these from hf_diffusion_forcing.compat"


def test_setup_allows_the_versions_that_were_tried():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (wanted,) = re.findall(r"^transformers(.*)$", setup["options"]["install_requires"], re.MULTILINE)
    newest = int(compat.VERSIONS[-1].split(".")[1])
    assert wanted == f">={compat.VERSIONS[0]},<5.{newest + 1}"
    assert f"\ntransformers=={compat.VERSIONS[-1]}." in (ROOT / "constraints.txt").read_text()
    assert compat.installed() in compat.VERSIONS


# --- the cache under both names ---


def test_the_signature_has_the_name_transformers_looks_for():
    for model in (RavenForCausalLM, LoopedAdapter):
        assert compat.CACHE in inspect.signature(model.forward).parameters
        assert not (set(NAMES) - {compat.CACHE}) & set(inspect.signature(model.forward).parameters)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("base", [False, True], ids=["language model", "base model"])
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
@torch.no_grad()
def test_forward_takes_and_returns_both_names(tiny, name, base):
    model = tiny.base_model if base else tiny
    common = {"num_steps": 4, "seeds": torch.tensor([0])}
    first = model(PROMPT[:, :3], **common)
    assert getattr(first, name) is first.cache is first[compat.CACHE]
    rest = model(PROMPT[:, 3:], **common, **{name: getattr(first, name)})
    torch.testing.assert_close(rest[0], model(PROMPT, **common)[0][:, 3:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning")
def test_a_text_continues_from_the_cache_under_both_names(tiny, sampler, name):
    first = tiny.generate(PROMPT, **sampler)
    held = getattr(first, name)
    assert held is first[compat.CACHE]
    ids = torch.cat((first.sequences, torch.tensor([[7, 8]])), dim=1)
    whole, new = copy.deepcopy(held), copy.deepcopy(held)
    seen = held.get_seq_length()
    passes = []
    hook = tiny.transformer.prelude[0].register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
    continued = tiny.generate(ids, **sampler, **{name: whole})
    hook.remove()
    # Nothing that is held is read again.
    assert passes[0] == ids.shape[1] - seen
    assert getattr(continued, name) is whole
    alone = tiny.generate(ids[:, seen:], attention_mask=torch.ones_like(ids), **sampler, **{name: new})
    assert alone.sequences[0].tolist() == continued.sequences[0, seen:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_is_said_of_the_cache(tiny, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with pytest.raises(TypeError, match=r"cache is a DynamicCache.*RecurrentDepthCache"):
            tiny.generate(PROMPT, max_new_tokens=2, **{name: transformers.DynamicCache()})


@pytest.mark.skipif(compat.RENAMED, reason="transformers warns itself, and takes the new name")
def test_one_name_at_a_time(tiny):
    both = {name: tiny.new_cache(6) for name in NAMES}
    with pytest.raises(ValueError, match="two names of one argument"):
        tiny(PROMPT, **both)
    with pytest.raises(ValueError, match="two names of one argument"):
        tiny.generate(PROMPT, max_new_tokens=2, **both)


@pytest.mark.skipif(not compat.RENAMED, reason="the old name is the right one")
def test_the_old_name_is_deprecated_as_transformers_has_it(tiny):
    with pytest.warns(FutureWarning, match=r"`past_key_values` is deprecated .* Use `cache` instead"):
        tiny(PROMPT, past_key_values=tiny.new_cache(6))
    with pytest.warns(FutureWarning, match=r"`past_key_values` is deprecated .* Use `cache` instead"):
        tiny.generate(PROMPT, max_new_tokens=2, past_key_values=tiny.new_cache(6, "none"))
    for output in (DiffusionForcingOutput, RecurrentDepthOutput, RecurrentDepthModelOutput):
        made = output(torch.zeros(1, 1), past_key_values=7)
        assert made.cache == made["cache"] == made["past_key_values"] == made.past_key_values == 7


# --- without a warning ---


def test_generate_is_silent(tiny, sampler, silence):
    inputs = left_pad([[3, 1, 4, 1, 5], [9, 2]])
    output = tiny.generate(**inputs, **sampler, pad_token_id=0)
    text = torch.cat((output.sequences, torch.tensor([[7], [8]])), dim=1)
    mask = torch.cat((inputs["attention_mask"], torch.ones(2, 7, dtype=torch.long)), dim=1)
    tiny.generate(text, attention_mask=mask, cache=output.cache, **sampler, pad_token_id=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"sampler": "autoregressive", "guidance_scale": 2.0},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 2},
        {"do_sample": True, "num_return_sequences": 2},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_transformers_own_ways_of_decoding_are_silent(tiny, silence, settings):
    output = tiny.generate(PROMPT, max_new_tokens=6, pad_token_id=0, return_dict_in_generate=True, **settings)
    assert output.cache.get_seq_length() > PROMPT.shape[1]


def test_an_assistant_is_silent(tiny, silence):
    torch.manual_seed(1)
    other = RavenForCausalLM(tiny_config()).eval()
    common = {"max_new_tokens": 8, "seed": 1, "return_dict_in_generate": True}
    plain = tiny.generate(PROMPT, **common)
    assert tiny.generate(PROMPT, assistant_model=other, **common).sequences.tolist() == plain.sequences.tolist()


def test_an_adapted_model_is_silent(sampler, silence):
    torch.manual_seed(0)
    model = enable_recurrent_depth(LoopedLM(LoopedConfig()).eval(), LoopedAdapter)
    first = model.generate(PROMPT, **sampler)
    model.generate(torch.cat((first.sequences, PROMPT), dim=1), **sampler, cache=first.cache)


# --- what else depends on the name ---


def test_the_trainer_leaves_the_cache_out_of_predictions(tiny, tmp_path):
    assert {compat.CACHE, "latents"} == set(RavenConfig.keys_to_ignore_at_inference)
    ids = PROMPT[0].tolist()
    arguments = few_steps(tmp_path, per_device_eval_batch_size=1)
    rows = [{"input_ids": ids, "labels": ids}, {"input_ids": ids, "labels": ids}]
    predictions = Trainer(tiny, arguments).predict(rows).predictions
    assert predictions.shape == (2, len(ids), tiny.config.padded_vocab_size)


class OldLoopedLM(LoopedLM):
    """As a class on the Hub may still have it, written for transformers before 5.24."""

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        return {"input_ids": input_ids, "past_key_values": past_key_values, "attention_mask": attention_mask}


def test_an_adapted_class_that_prepares_its_inputs_under_the_old_name(sampler):
    texts = []
    for model_class in (LoopedLM, OldLoopedLM):
        torch.manual_seed(0)
        model = enable_recurrent_depth(model_class(LoopedConfig()).eval(), LoopedAdapter)
        texts.append(model.generate(PROMPT, **sampler).sequences.tolist())
    assert texts[0] == texts[1]


def test_the_cache_is_not_taken_for_a_linear_one(tiny):
    cache = tiny.new_cache(6)
    assert cache.is_linear == [False] * len(cache) and cache.is_croppable


def test_guidance_keeps_its_cache_under_the_name(tiny):
    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, tiny)
    assert compat.CACHE in processor.unconditional_context


def test_rows_of_one_prompt_are_kept_in_the_processor():
    assert PrefixConstrainedLogitsProcessor(lambda row, ids: [1], 3)._num_beams == 3


def test_serving_lists_the_model_under_both_names():
    serve = importlib.import_module("hf_diffusion_forcing.serving.server")
    assert serve.LoadedModel.list_models is serve.LoadedModel.get_gen_models
