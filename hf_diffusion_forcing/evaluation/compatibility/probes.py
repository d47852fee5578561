"""The probes: for every argument of `generate()`, one call with it and one without."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    WatermarkingConfig,
)
from transformers.generation import CompileConfig

from ... import RavenForCausalLM
from .subjects import (
    BATCH,
    DICT,
    ENDING,
    EVEN,
    GREEDY,
    IDS,
    NEGATIVE,
    NO_PROMPT,
    ODD,
    PROMPT,
    REPEATING,
    SAMPLED,
    SCORED,
    AtLength8,
    ByScores,
    OtherParity,
    Recorder,
    cache_of_another_text,
    one_process_group,
    tokenizer,
)

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
"""Keywords that users pass to `generate()` but that are neither in its signature nor in `GenerationConfig`."""


class ProbeError(Exception):
    """A problem that must be solved before the page can be written."""


@dataclass(frozen=True)
class Probe:
    """A call with an argument and one without. The difference is the effect of the argument.

    Attributes:
        argument: name of the argument.
        given: the keywords that set it, or a function of the model and the sampler's settings that makes them for each
            call.
        base: the call without the argument, greedy by default.
        no_effect: the reason why the argument may have no effect.
        remark: a note for the case that it works.
        variant: distinguishes several probes of one argument.
        around: a context manager for the calls.
    """

    argument: str
    given: dict | Callable[[RavenForCausalLM, dict], dict]
    base: dict = field(default_factory=lambda: GREEDY)
    no_effect: str = ""
    remark: str = ""
    variant: str = ""
    around: Callable[[], AbstractContextManager] = nullcontext

    def added(self, model: RavenForCausalLM, settings: dict) -> dict:
        """Return the keywords that the call with the argument adds to `base`."""
        return self.given(model, settings) if callable(self.given) else self.given


def stop_strings(model, settings) -> dict:
    return {"stop_strings": list("acegikmoqsuwy"), "tokenizer": tokenizer()}


def unused(reason: str, **given) -> list[Probe]:
    """Return one probe per argument that only other ways of decoding use."""
    return [Probe(name, {name: value}, no_effect=reason) for name, value in given.items()]


PROBES: dict[str, list[Probe]] = {
    "Prompt": [
        Probe("inputs", {"inputs": IDS}, NO_PROMPT),
        Probe("input_ids", {"input_ids": IDS}, NO_PROMPT),
        Probe("attention_mask", {"attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}),
        Probe(
            "position_ids",
            {"position_ids": torch.arange(5)[None]},
            no_effect="positions are counted from `attention_mask`; others are refused",
        ),
        Probe("inputs_embeds", {"inputs_embeds": torch.zeros(1, 5, 32)}),
        Probe(
            "token_healing",
            lambda model, settings: {"token_healing": True, "tokenizer": tokenizer()},
            remark="plain decoding chooses the prompt's last token, and `seed` does not affect it",
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
        Probe(
            "output_hidden_states",
            {"output_hidden_states": True},
            DICT,
            no_effect="`hidden_states` is None, since refined positions have no last pass; "
            '`return_trace="latents"` records their states',
        ),
        Probe(
            "streamer",
            lambda model, settings: {"streamer": Recorder()},
            remark="one row; several rows with `autoregressive`",
        ),
        Probe(
            "logits_to_keep", {"logits_to_keep": 3}, no_effect="only the logits of the last prompt position are used"
        ),
    ],
    "Cache": [
        Probe(
            "cache",
            cache_of_another_text,
            remark="a `RecurrentDepthCache`, from an earlier `generate()` or from `model.new_cache(...)`; "
            "`past_key_values`, the name before transformers 5.24, works too",
        ),
        Probe("use_cache", {"use_cache": False}),
        Probe("cache_implementation", {"cache_implementation": "static"}, variant='`"static"`'),
        Probe(
            "cache_implementation",
            {"cache_implementation": "paged"},
            variant='`"paged"`',
            remark="decodes with `generate_batch()`; the ids have shape [1, rows, length]",
        ),
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
            remark="replaces the sampler",
        ),
        *unused("used by generation modes that load code from the Hub only", trust_remote_code=True),
        Probe(
            "synced_gpus",
            {"synced_gpus": True},
            no_effect="synchronises several processes; the probe has one",
            around=one_process_group,
        ),
        Probe("penalty_alpha", {"penalty_alpha": 0.6, "top_k": 4}),
        Probe("dola_layers", {"dola_layers": "low"}),
        *unused("used by contrastive search only", low_memory=True),
        *unused(
            "used by compiled forward passes only; with a `RecurrentDepthCache` the forward pass is not compiled",
            compile_config=CompileConfig(),
            disable_compile=True,
        ),
        *unused("used by `generate_batch()` only", continuous_batching_config=ContinuousBatchingConfig()),
        Probe("use_model_defaults", {"use_model_defaults": True}),
    ],
}


def arguments() -> set[str]:
    """Return every argument that the page must list."""
    signature = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    fields = {name for name in GenerationConfig().to_dict() if not name.startswith("_")} - {"transformers_version"}
    return signature | fields | set(KEYWORDS)


def check_probes() -> None:
    """Raise a `ProbeError` if an argument has no probe or a probe has no argument."""
    probed = {probe.argument for group in PROBES.values() for probe in group}
    if missing := sorted(arguments() - probed):
        raise ProbeError(f"generate() takes arguments that have no probe: {', '.join(missing)}. Add a probe for each.")
    if gone := sorted(probed - arguments()):
        raise ProbeError(
            f"There are probes for arguments that generate() does not take: {', '.join(gone)}. Remove them."
        )
