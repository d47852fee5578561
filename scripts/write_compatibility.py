"""Try every argument of `generate()` with every sampler and write docs/compatibility.md.

    python scripts/write_compatibility.py
    python scripts/write_compatibility.py --check

The page is measured: each argument has a probe, and the table says what the probe saw on a tiny model with random
weights. These are errors, and then nothing is written: an argument without a probe, one that does nothing without a
reason, one that crashes, and one whose text is not autoregression's where it must be. So a new version of transformers
cannot add an argument unnoticed: give it a probe below and run this again. `--check` only compares, and exits with 1 if
the page is stale.
"""

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import tokenizers
import torch
import torch.distributed
import transformers
import typer
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import CompileConfig

from hf_diffusion_forcing import RavenConfig, RavenForCausalLM
from hf_diffusion_forcing.settings.sampler_configs import SAMPLER_CONFIGS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"
KEYWORDS = (
    "input_ids",
    "attention_mask",
    "cache",
    "inputs_embeds",
    "position_ids",
    "logits_to_keep",
    "tokenizer",
    "assistant_tokenizer",
    "trust_remote_code",
    "use_model_defaults",
)
"""What users pass to `generate()` that is neither in its signature nor in `GenerationConfig`."""


# --- what the probes pass ---

IDS = torch.tensor([[3, 1, 4, 1, 5]])
NEGATIVE = torch.tensor([[23, 21, 24]])
BATCH = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [7, 7, 8, 8, 1], [1, 2, 3, 4, 6]])
EVEN, ODD = list(range(0, 61, 2)), list(range(1, 61, 2))

PROMPT = {"input_ids": IDS}
GREEDY = PROMPT | {"max_new_tokens": 8}
SAMPLED = GREEDY | {"do_sample": True}
ENDING = GREEDY | {"eos_token_id": EVEN}
"""Ends at its first even token, which is soon."""
REPEATING = GREEDY | {"sequence_bias": [[[5], 20.0]]}
"""Says a token of the prompt over and over."""
DICT = GREEDY | {"return_dict_in_generate": True}
SCORED = DICT | {"output_scores": True}
NO_PROMPT = {"max_new_tokens": 8, "bos_token_id": 1}


class OtherParity(LogitsProcessor):
    """An even token after an odd one, an odd one after an even one."""

    def __call__(self, input_ids, scores):
        tokens = torch.arange(scores.shape[-1])
        return scores.masked_fill(tokens % 2 == input_ids[:, -1:] % 2, float("-inf"))


class AtLength8(StoppingCriteria):
    """Ends at 8 tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 8)


class ByScores(StoppingCriteria):
    """Ends when there are four scores."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), len(scores) == 4)


class Recorder:
    """A streamer that keeps what it got."""

    def __init__(self):
        self.events: list = []

    def put(self, value):
        self.events += value.flatten().tolist()

    def end(self):
        self.events.append("end")


def tiny_model() -> RavenForCausalLM:
    """Random weights: it converges nowhere in particular, and every draft is a guess."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "n_embd": 32, "n_heads": 2, "intermediate_size": 48, "block_size": 128}
    layers = {"n_layers_in_prelude": 1, "n_layers_in_recurrent_block": 2, "n_layers_in_coda": 1}
    return RavenForCausalLM(RavenConfig(**sizes, **layers, mean_recurrence=6, mean_backprop_depth=3)).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A token per letter, id 0 is "a"; the ids after "z" are extensions of "f", the prompt's last letter."""
    letters = [chr(ord("a") + place) for place in range(26)]
    vocabulary = letters + [f"f{letter}" for letter in letters] + [f"ff{letter}" for letter in letters[:9]]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({token: place for place, token in enumerate(vocabulary)}, unk_token="z")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="y", pad_token="z", padding_side="left")


def cache_of_another_text(model, settings: dict) -> dict:
    """The first columns of the prompt are taken from a cache, which was made of other tokens."""
    kept = {name: settings[name] for name in ("sampler", "kv_sharing", "seed") if name in settings}
    other = model.generate(IDS[:, :4] + 20, **kept, max_new_tokens=1, return_dict_in_generate=True)
    return {"cache": other.cache}


@contextmanager
def one_process_group() -> Iterator[None]:
    """torch.distributed, with this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


# --- the probes ---


@dataclass(frozen=True)
class Probe:
    """A call with an argument and one without: what differs is what the argument does.

    Attributes:
        argument: its name.
        given: keywords that exercise it, or a function of the model and the sampler's settings that makes them anew
            for every call.
        base: the call without it, greedy by default.
        no_effect: why it may do nothing.
        remark: a note where it works.
        variant: told after the name where an argument has several probes.
        around: entered around the calls.
    """

    argument: str
    given: dict | Callable[[RavenForCausalLM, dict], dict]
    base: dict = field(default_factory=lambda: GREEDY)
    no_effect: str = ""
    remark: str = ""
    variant: str = ""
    around: Callable[[], AbstractContextManager] = nullcontext

    def added(self, model: RavenForCausalLM, settings: dict) -> dict:
        """The keywords that the call with the argument adds to `base`."""
        return self.given(model, settings) if callable(self.given) else self.given


def stop_strings(model, settings) -> dict:
    return {"stop_strings": list("acegikmoqsuwy"), "tokenizer": tokenizer()}


def unused(reason: str, **given) -> list[Probe]:
    """Arguments that other ways of decoding use, one by one."""
    return [Probe(name, {name: value}, no_effect=reason) for name, value in given.items()]


PROBES: dict[str, list[Probe]] = {
    "Prompt": [
        Probe("inputs", {"inputs": IDS}, NO_PROMPT),
        Probe("input_ids", {"input_ids": IDS}, NO_PROMPT),
        Probe("attention_mask", {"attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}),
        Probe("position_ids", {"position_ids": torch.arange(5)[None]}),
        Probe("inputs_embeds", {"inputs_embeds": torch.zeros(1, 5, 32)}),
        Probe(
            "token_healing",
            lambda model, settings: {"token_healing": True, "tokenizer": tokenizer()},
            remark="the prompt's last token is chosen by plain decoding, which `seed` does not reach",
        ),
    ],
    "Length": [
        Probe("max_length", {"max_length": 12}, PROMPT),
        Probe("max_new_tokens", {"max_new_tokens": 6}, PROMPT),
        Probe("min_length", {"min_length": 12}, ENDING),
        Probe("min_new_tokens", {"min_new_tokens": 7}, ENDING),
    ],
    "Stopping": [
        Probe("stopping_criteria", {"stopping_criteria": StoppingCriteriaList([AtLength8()])}),
        Probe(
            "stopping_criteria",
            {"stopping_criteria": StoppingCriteriaList([ByScores()])},
            SCORED,
            variant="one that reads `scores`",
        ),
        Probe("eos_token_id", {"eos_token_id": EVEN}),
        Probe("stop_strings", stop_strings),
        Probe("tokenizer", stop_strings, remark="for `stop_strings` and `token_healing`"),
        Probe("max_time", {"max_time": 0.0}),
    ],
    "Sampling": [
        Probe("do_sample", {"do_sample": True}),
        Probe("temperature", {"temperature": 0.2}, SAMPLED),
        Probe("top_k", {"top_k": 2}, SAMPLED),
        Probe("top_p", {"top_p": 0.2}, SAMPLED),
        Probe("min_p", {"min_p": 0.8}, SAMPLED),
        Probe("top_h", {"top_h": 0.2}, SAMPLED),
        Probe("typical_p", {"typical_p": 0.1}, SAMPLED),
        Probe("epsilon_cutoff", {"epsilon_cutoff": 0.05}, SAMPLED),
        Probe("eta_cutoff", {"eta_cutoff": 0.5}, SAMPLED),
        Probe("num_return_sequences", {"num_return_sequences": 2}, SAMPLED),
    ],
    "Processors": [
        Probe("logits_processor", {"logits_processor": LogitsProcessorList([OtherParity()])}),
        Probe(
            "prefix_allowed_tokens_fn",
            {"prefix_allowed_tokens_fn": lambda row, ids: ODD if int(ids[-1]) % 2 == 0 else EVEN},
        ),
        Probe("repetition_penalty", {"repetition_penalty": 50.0}, REPEATING),
        Probe("encoder_repetition_penalty", {"encoder_repetition_penalty": 0.01}, REPEATING),
        Probe("no_repeat_ngram_size", {"no_repeat_ngram_size": 1}, REPEATING),
        Probe("encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": 1}, REPEATING),
        Probe("bad_words_ids", {"bad_words_ids": [[token] for token in EVEN]}),
        Probe("suppress_tokens", {"suppress_tokens": EVEN}),
        Probe("begin_suppress_tokens", {"begin_suppress_tokens": list(range(60))}),
        Probe("sequence_bias", {"sequence_bias": [[[7], 20.0]]}),
        Probe("forced_bos_token_id", {"forced_bos_token_id": 9}, GREEDY | {"input_ids": IDS[:, :1]}),
        Probe("forced_eos_token_id", {"forced_eos_token_id": 60}),
        Probe(
            "exponential_decay_length_penalty",
            {"exponential_decay_length_penalty": (2, 20.0)},
            GREEDY | {"eos_token_id": 7},
        ),
        Probe("renormalize_logits", {"renormalize_logits": True}, SCORED | {"do_sample": True}),
        Probe(
            "remove_invalid_values",
            {"remove_invalid_values": True},
            SCORED | {"sequence_bias": [[[7], float("inf")]]},
        ),
        Probe(
            "watermarking_config",
            {"watermarking_config": WatermarkingConfig(bias=20.0)},
            variant="`WatermarkingConfig`",
        ),
        Probe(
            "watermarking_config",
            {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)},
            SAMPLED,
            variant="`SynthIDTextWatermarkingConfig`",
        ),
        Probe("guidance_scale", {"guidance_scale": 3.0}),
        Probe("negative_prompt_ids", {"negative_prompt_ids": NEGATIVE}, GREEDY | {"guidance_scale": 3.0}),
        Probe(
            "negative_prompt_attention_mask",
            {"negative_prompt_attention_mask": torch.tensor([[0, 0, 1]])},
            GREEDY | {"guidance_scale": 3.0, "negative_prompt_ids": NEGATIVE},
        ),
    ],
    "Outputs": [
        Probe("return_dict_in_generate", {"return_dict_in_generate": True}),
        Probe("output_scores", {"output_scores": True}, DICT),
        Probe("output_logits", {"output_logits": True}, DICT),
        Probe("output_attentions", {"output_attentions": True}, DICT),
        Probe("output_hidden_states", {"output_hidden_states": True}, DICT),
        Probe(
            "streamer",
            lambda model, settings: {"streamer": Recorder()},
            remark="for one row; with `autoregressive` for several",
        ),
        Probe("logits_to_keep", {"logits_to_keep": 3}, no_effect="only the last of the prompt's logits are used"),
    ],
    "Cache": [
        Probe(
            "cache",
            cache_of_another_text,
            remark="a `RecurrentDepthCache`, from an earlier `generate()` or from `model.new_cache(...)`; also "
            "`past_key_values`, its name before transformers 5.24",
        ),
        Probe("use_cache", {"use_cache": False}),
        Probe("cache_implementation", {"cache_implementation": "static"}, variant='`"static"`'),
        Probe("cache_implementation", {"cache_implementation": "paged"}, variant='`"paged"`'),
        *unused("used by quantized caches only", cache_config={"nbits": 4}),
        *unused("used by static caches only", max_cache_len=64),
        Probe("prefill_chunk_size", {"prefill_chunk_size": 2}),
    ],
    "Beams": [
        Probe("num_beams", {"num_beams": 2}),
        *unused("used by beam search only", early_stopping=True, length_penalty=3.0),
        *unused("used by group beam search only", num_beam_groups=2, diversity_penalty=1.0),
        Probe("constraints", {"constraints": ["a constraint"]}),
        Probe("force_words_ids", {"force_words_ids": [[7]]}),
    ],
    "Assisted generation": [
        Probe("assistant_model", lambda model, settings: {"assistant_model": model}),
        Probe("prompt_lookup_num_tokens", {"prompt_lookup_num_tokens": 3}),
        Probe("assistant_early_exit", {"assistant_early_exit": 2}),
        Probe("use_mtp", {"use_mtp": True}),
        Probe("is_assistant", {"is_assistant": True}),
        *unused(
            "used by assisted generation only",
            assistant_tokenizer="any",
            num_assistant_tokens=3,
            num_assistant_tokens_schedule="heuristic",
            assistant_confidence_threshold=0.9,
            max_matching_ngram_size=3,
            assistant_lookbehind=2,
            target_lookbehind=2,
            assistant_ensemble_weight=0.5,
            speculation_type="dflash",
        ),
    ],
    "Special tokens": [
        Probe("pad_token_id", {"pad_token_id": 60}, ENDING | {"input_ids": BATCH}),
        Probe("bos_token_id", {"bos_token_id": 2}, NO_PROMPT),
        *unused("used by encoder-decoder models only", decoder_start_token_id=3),
    ],
    "Other": [
        Probe("generation_config", {"generation_config": GenerationConfig(max_new_tokens=4)}, PROMPT),
        Probe(
            "custom_generate",
            {"custom_generate": lambda model, input_ids, **kwargs: input_ids[:, :2]},
            remark="decodes in the sampler's place",
        ),
        *unused("used by generation modes that load code from the Hub only", trust_remote_code=True),
        Probe(
            "synced_gpus",
            {"synced_gpus": True},
            no_effect="keeps processes in step; the probe has one",
            around=one_process_group,
        ),
        Probe("penalty_alpha", {"penalty_alpha": 0.6, "top_k": 4}),
        Probe("dola_layers", {"dola_layers": "low"}),
        *unused("used by contrastive search only", low_memory=True),
        *unused(
            "used where the forward pass is compiled, which it is not with a `RecurrentDepthCache`",
            compile_config=CompileConfig(),
            disable_compile=True,
        ),
        *unused("used by `generate_batch()` only", continuous_batching_config=ContinuousBatchingConfig()),
        Probe("use_model_defaults", {"use_model_defaults": True}),
    ],
}


def arguments() -> set[str]:
    """Every argument the page must know."""
    signature = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")} - {"transformers_version"}
    return signature | fields | set(KEYWORDS)


def check_probes() -> None:
    """Refuse an argument without a probe, and a probe for what is no argument."""
    probed = {probe.argument for group in PROBES.values() for probe in group}
    if missing := sorted(arguments() - probed):
        raise ProbeError(f"generate() takes arguments that have no probe: {', '.join(missing)}. Write them one.")
    if gone := sorted(probed - arguments()):
        raise ProbeError(f"There are probes for what generate() does not take: {', '.join(gone)}. Remove them.")


# --- what a call does ---


class ProbeError(Exception):
    """What must be looked at before the page can be written."""


@dataclass(frozen=True)
class Refusal:
    """A call that was refused, with the error's first sentence."""

    reason: str


Outcome = dict[str, Any]
"""All that can be seen of a call: its ids, the fields of a dict output, what a streamer got, the width of each pass
of `forward()`. Plain values, so that two outcomes can be compared."""


def plain(value: Any) -> Any:
    """A value as lists, numbers and strings."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    return value.to_dict() if hasattr(value, "to_dict") else repr(value)


def observe(model: RavenForCausalLM, keywords: dict) -> Outcome:
    """Call `generate()` and keep what it did."""
    widths: list[int] = []

    def keep_width(module, args, kwargs):
        widths.append((args[0] if args else kwargs["input_ids"]).shape[1])

    torch.manual_seed(0)
    hook = model.register_forward_pre_hook(keep_width, with_kwargs=True)
    try:
        result = model.generate(**keywords)
    finally:
        hook.remove()
    outcome: Outcome = {"forward": widths, "type": type(result).__name__}
    if "streamer" in keywords:
        outcome["streamed"] = keywords["streamer"].events
    fields = {"sequences": result} if isinstance(result, torch.Tensor) else dict(result)
    return outcome | {name: plain(value) for name, value in fields.items()}


def is_deliberate(error: Exception) -> bool:
    """Whether a `raise` statement raised it, rather than code that was never meant for such a call."""
    return (traceback.extract_tb(error.__traceback__)[-1].line or "").startswith("raise ")


def first_sentence(message: str) -> str:
    """The first sentence of an error, on one line, without its full stop and without addresses of objects."""
    sentence = re.split(r"(?<=[.!?])\s", " ".join(message.split()), maxsplit=1)[0].rstrip(".")
    return re.sub(r" at 0x[0-9a-f]+", "", sentence)


def attempt(model: RavenForCausalLM, settings: dict, probe: Probe) -> Outcome | Refusal:
    """What a call with the argument does.

    Raises:
        ProbeError: it crashes, where transformers does not.
    """

    def call(settings: dict) -> Outcome:
        return observe(model, settings | probe.base | probe.added(model, settings))

    try:
        return call(settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = first_sentence(str(error))
        if is_deliberate(error):
            return Refusal(reason)
        try:
            call({"seed": settings["seed"]})
        except Exception as without_sampler:
            if (type(without_sampler), str(without_sampler)) == (type(error), str(error)):
                return Refusal(f"fails without a sampler, too ({type(error).__name__}: {reason})")
        raise ProbeError(f"crashes with {type(error).__name__}: {reason}") from error
    except Exception as error:
        raise ProbeError(f"crashes with {type(error).__name__}: {first_sentence(str(error))}") from error


# --- what the samplers make of it ---


@dataclass(frozen=True)
class Finding:
    """What a sampler makes of an argument: "works", "refused" or "no effect", and a note."""

    status: str
    note: str = ""


def sampler_settings(sampler: str, **wanted) -> dict:
    """Keywords that choose a sampler, with those of the wanted settings that it has."""
    names = SAMPLER_CONFIGS[sampler].fields()
    return {"sampler": sampler, "seed": 4} | {name: value for name, value in wanted.items() if name in names}


def check_against_reference(model: RavenForCausalLM, sampler: str, probe: Probe) -> None:
    """The argument must do the same elsewhere.

    A wave of one position that has all its recurrences in one tick is autoregression with shared keys and values. The
    speculative wavefront is autoregression whatever its drafts are.
    Autoregression is, when greedy, transformers' own decoding; when it samples, its noise is another.
    """
    if sampler != "autoregressive":
        depth = model.config.mean_recurrence
        sharing = "none" if sampler == "speculative_wavefront" else "last"
        settings = sampler_settings(
            sampler, kv_sharing=sharing, wavefront=1, inner_recurrence=depth, exit_threshold=0.0
        )
        expected_settings = sampler_settings("autoregressive", kv_sharing=sharing)
    elif probe.argument == "do_sample" or "do_sample" in probe.base:
        return
    else:
        settings, expected_settings = sampler_settings(sampler), {"seed": 4}

    outcome, expected = attempt(model, settings, probe), attempt(model, expected_settings, probe)
    if isinstance(outcome, Refusal) or isinstance(expected, Refusal):
        raise ProbeError(f"is refused by one of two that must decode alike: {outcome}, {expected}")
    for name in ("sequences", "streamed"):
        if outcome.get(name) != expected.get(name):
            raise ProbeError(f"gives {name} {outcome.get(name)} where it must be {expected.get(name)}")
    for name in ("scores", "logits"):
        mine, theirs = (torch.tensor(either.get(name, [])) for either in (outcome, expected))
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs, atol=1e-4):
            raise ProbeError(f"gives other {name} than its reference")


def find(model: RavenForCausalLM, sampler: str, probe: Probe, bases: dict[tuple[str, int], Outcome]) -> Finding:
    """Run a probe with a sampler.

    Args:
        bases: outcomes of base calls that were made before, by the sampler and the identity of the base.

    Raises:
        ProbeError: the argument crashes, does nothing without a reason, or does something else than elsewhere.
    """
    settings = sampler_settings(sampler, wavefront=8, inner_recurrence=2)
    outcome = attempt(model, settings, probe)
    if isinstance(outcome, Refusal):
        return Finding("refused", outcome.reason.replace(f"sampler={sampler!r}", "this sampler"))
    key = sampler, id(probe.base)
    if key not in bases:
        bases[key] = observe(model, settings | probe.base)
    if outcome == bases[key]:
        if not probe.no_effect:
            raise ProbeError("has no effect, and its probe gives no reason")
        return Finding("no effect", probe.no_effect)
    check_against_reference(model, sampler, probe)
    return Finding("works", probe.remark)


# --- the page ---

INTRODUCTION = """\
# Compatibility with `generate()`

What every argument of transformers' `generate()` and every field of its `GenerationConfig` does with a sampler. The
settings of the samplers themselves are on [a page of their own](settings.md); without a sampler `generate()` is
transformers' own.

The tables are measured: `python scripts/write_compatibility.py` calls `generate()` with and without each argument, on
a tiny model with random weights. The outcome of a call is all that can be seen: the ids, the fields of a dict output
and their values, what a streamer gets, how wide the passes of `forward()` are.

- **works**: the argument changes the outcome. It is also checked against a reference: where a sampler refines one
  position at a time, with all its recurrences, the text must be that of `sampler="autoregressive"` with the same
  argument; and `sampler="autoregressive"`, when greedy, must be transformers' own decoding.
- **refused**: a `ValueError`, `TypeError` or `NotImplementedError`; its first sentence is the note.
- **no effect**: the outcome is the same, for the reason in the note.

{versions}

Three things to know about those that work:

- Logits processors are applied to each position of a wave with its own prefix. Those that read no prefix
  (temperature, `top_k`, ...) are called once for a whole wave, any other one once for every prefix length in it.
- The prefix of a draft may be one that can never come about. `prefix_allowed_tokens_fn` may raise there, or allow
  nothing: it is then ignored for that draft. Where the prefix is final, what it raises ends the call.
- Stopping criteria are called with committed tokens, once for every length, and with the whole batch, as transformers
  does it: when all rows that go on are that long. A row that was ahead is cut back to where it ended. (Stop strings and
  `max_time` are asked row by row.) They get scores where `output_scores` is asked for.
"""
VERSIONS = re.compile(r"^Made with .*$", re.MULTILINE)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings that the probes' calls deserve."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)


def findings(model: RavenForCausalLM) -> dict[str, list[tuple[Probe, dict[str, Finding]]]]:
    """Per topic, each probe with its finding for every sampler.

    Raises:
        ProbeError: names every argument that is not in order.
    """
    found, bases, problems = {}, {}, []
    for topic, group in PROBES.items():
        found[topic] = []
        for probe in group:
            row = {}
            for sampler in SAMPLER_CONFIGS:
                try:
                    with probe.around():
                        row[sampler] = find(model, sampler, probe, bases)
                except ProbeError as error:
                    problems.append(f"{probe.argument} with sampler={sampler!r} {error}")
            found[topic].append((probe, row))
    if problems:
        raise ProbeError("\n".join(problems))
    return found


def note(row: dict[str, Finding]) -> str:
    """The notes of a row: a common one plainly, different ones each with its samplers."""
    samplers: dict[str, list[str]] = {}
    for sampler, finding in row.items():
        if finding.note:
            samplers.setdefault(finding.note, []).append(sampler)
    notes = [
        text if len(names) == len(row) else f"{', '.join(f'`{name}`' for name in names)}: {text}"
        for text, names in samplers.items()
    ]
    return "; ".join(notes).replace("|", "\\|")


def page() -> str:
    """The page, measured now."""
    check_probes()
    with quiet():
        found = findings(tiny_model())
    versions = f"Made with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}."
    parts = [INTRODUCTION.format(versions=versions)]
    for topic, rows in found.items():
        parts.append(f"## {topic}\n")
        parts.append(f"| argument | {' | '.join(f'`{name}`' for name in SAMPLER_CONFIGS)} | note |")
        parts.append("| --- |" + " --- |" * (len(SAMPLER_CONFIGS) + 1))
        for probe, row in rows:
            name = f"`{probe.argument}`" + (f": {probe.variant}" if probe.variant else "")
            statuses = " | ".join(finding.status for finding in row.values())
            parts.append(f"| {name} | {statuses} | {note(row)} |")
        parts.append("")
    return "\n".join(parts)


def is_current(text: str) -> bool:
    """Whether the page in docs says the same; the versions it was made with are no part of that."""
    return PAGE.exists() and VERSIONS.sub("", PAGE.read_text()) == VERSIONS.sub("", text)


def main(check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if stale.")] = False):
    try:
        text = page()
    except ProbeError as error:
        raise SystemExit(f"The page was not written:\n{error}") from error
    if not check:
        PAGE.write_text(text)
    elif not is_current(text):
        raise SystemExit("docs/compatibility.md is stale: run python scripts/write_compatibility.py")


if __name__ == "__main__":
    typer.run(main)
