"""`generate()` with `sampler=`: transformers' own generation, with the decoding loop chosen by name."""

from functools import partial
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import GenerationMode

from ..cache import RecurrentDepthCache
from ..compat import CACHE, NEW_NAME, OLD_NAME, CacheGenerationMixin
from ..randomness import row_seeds
from ..settings.presets import preset, preset_sampler
from ..settings.sampler_configs import (
    SAMPLER_CONFIGS,
    AutoregressiveConfig,
    SamplerConfig,
    merged,
    sampler_config_class,
)
from ..settings.validation import nearest
from .adaptive import Adaptive  # noqa: F401
from .batch import Batch
from .choice import KeyedGumbelProcessor
from .diffusion_forcing import DiffusionForcing  # noqa: F401
from .sampler import SAMPLERS
from .speculative_wavefront import SpeculativeWavefront  # noqa: F401

WAVEFRONT_SAMPLERS = SAMPLERS
"""Samplers with a loop of their own; `"autoregressive"` is transformers' loop."""

SAMPLER_KEYWORDS = {name for config in SAMPLER_CONFIGS.values() for name in config.fields()}

CALL_KEYWORDS = {"sampler", "sampler_config", "sampler_preset", "return_trace"}
"""What a call may say besides a sampler's settings; `return_trace` is of the call alone and is stored nowhere."""


class RecurrentDepthGenerationMixin(CacheGenerationMixin):
    """`GenerationMixin` for recurrent-depth models.

    `generate()` takes `sampler="diffusion_forcing"`, `"speculative_wavefront"`, `"adaptive"` or `"autoregressive"`,
    every field of that sampler's config as a keyword, `sampler_config=` and `sampler_preset=`; without them it reads
    the generation config. With neither it is plain transformers decoding, to which the keywords of `"autoregressive"`
    apply; sampling then draws from torch's generator. With `return_trace=True` (or `"latents"`) and
    `return_dict_in_generate=True` a parallel sampler's output has a `Trace`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generation_config = self.own_generation_config()

    def own_generation_config(self) -> GenerationConfig:
        """A generation config of the model's special tokens alone.

        One that transformers derives from the model's config takes over what transformers 4 wrote there
        (`max_length` 20, ...), and loses the sampler's settings when it is saved and loaded.
        """
        tokens = {name: getattr(self.config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return GenerationConfig(**tokens)

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        """transformers' own step of loading; a checkpoint without a generation config gets its model's own."""
        super().adjust_generation_fn(*args, **kwargs)
        loaded = self.generation_config
        if loaded._from_model_config:
            self.generation_config = self.own_generation_config()
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if getattr(loaded, name) is not None:
                    setattr(self.generation_config, name, getattr(loaded, name))

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict]:
        """Take the sampler's keywords out of the call, resolve and validate them.

        Precedence, highest first: a keyword of the call, `sampler_config` of the call, the generation config (the one
        passed if it says anything about a sampler, else the model's), the preset, the default.
        """
        sampler = kwargs.pop("sampler", None)
        passed = kwargs.pop("sampler_config", None)
        preset_name = kwargs.pop("sampler_preset", None)
        return_trace = kwargs.pop("return_trace", False)
        given = {name: kwargs.pop(name) for name in SAMPLER_KEYWORDS & kwargs.keys()}
        # A config passed with a sampler brings that sampler's settings; the model's are for the model's sampler.
        names = ("sampler", "sampler_config", "sampler_preset")
        source = generation_config if any(hasattr(generation_config, n) for n in names) else self.generation_config
        own = set() if generation_config is None else vars(generation_config).keys()
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        self._refuse_unknown_keywords(model_kwargs)
        if generation_config.cache_implementation == "paged":
            self.init_continuous_batching()
        if hasattr(source, "return_trace") or "return_trace" in own:
            raise ValueError("return_trace stands on the generation config; pass it to generate() itself.")
        if misplaced := sorted(SAMPLER_KEYWORDS & (vars(source).keys() | own)):
            raise ValueError(f"{misplaced[0]} stands on the generation config itself; put it into its sampler_config.")

        stored_preset = getattr(source, "sampler_preset", None)
        stored_sampler = getattr(source, "sampler", None) or (preset_sampler(stored_preset) if stored_preset else None)
        if isinstance(passed, SamplerConfig):
            if sampler not in (None, passed.sampler):
                raise ValueError(
                    f"sampler={sampler!r} does not fit sampler_config={type(passed).__name__}, which is for "
                    f"{passed.sampler!r}: leave out one of them."
                )
            sampler = passed.sampler
            passed = {name: getattr(passed, name) for name in passed.fields()}
        if sampler is None:
            sampler = stored_sampler if preset_name is None else preset_sampler(preset_name)
        if preset_name is None and sampler == stored_sampler:
            preset_name = stored_preset
        if passed is not None and not isinstance(passed, dict):
            raise TypeError(f"sampler_config={passed!r} must be a SamplerConfig or a dict of settings.")
        config_class = sampler_config_class(sampler) if sampler is not None else AutoregressiveConfig
        stored = (getattr(source, "sampler_config", None) or {}) if stored_sampler in (None, sampler) else {}
        if not isinstance(stored, dict):
            raise TypeError(f"sampler_config={stored!r} of a generation config must be a dict: use its to_dict().")
        for name, value in ((passed or {}) | given).items():
            takers = [key for key, config in SAMPLER_CONFIGS.items() if name in config.fields()]
            if takers and sampler not in takers and name not in config_class.fields():
                raise ValueError(
                    f"{name}={value!r} is not a setting of sampler={sampler!r}: "
                    f"pass sampler={' or '.join(map(repr, takers))}, or leave it out."
                )
        own_settings = merged(stored, passed or {}, given)
        chosen = {}
        if preset_name is not None:
            depth = own_settings.get("num_steps") or self.config.mean_recurrence
            chosen = preset(preset_name, sampler, self.config.model_type, depth)
        settings = config_class.from_dict(merged(chosen, own_settings))
        generation_config.sampler = sampler
        # Here and not only where modes are validated: before that transformers asks for code from the Hub for some.
        self._refuse_other_modes(sampler, generation_config.get_generation_mode())
        # The object, not its dict: hooks passed as instances have no other form.
        generation_config._sampler_settings = settings.resolve(self.config.mean_recurrence)
        self._validate_return_trace(return_trace, sampler, generation_config)
        generation_config._return_trace = return_trace
        return generation_config, model_kwargs

    def _validate_return_trace(
        self, return_trace: Any, sampler: str | None, generation_config: GenerationConfig
    ) -> None:
        if not isinstance(return_trace, (bool, str)):
            raise TypeError(f"return_trace={return_trace!r} must be True, False or 'latents'.")
        if isinstance(return_trace, str) and return_trace != "latents":
            raise ValueError(f"return_trace={return_trace!r} is unknown: use True, False or 'latents'.")
        if return_trace and sampler not in WAVEFRONT_SAMPLERS:
            raise ValueError(
                f"return_trace={return_trace!r} is not possible with sampler={sampler!r}, which has no ticks: "
                f"pass sampler={' or '.join(map(repr, WAVEFRONT_SAMPLERS))}."
            )
        if return_trace and not generation_config.return_dict_in_generate:
            raise ValueError(
                f"return_trace={return_trace!r} has nowhere to go without return_dict_in_generate=True: pass that too."
            )

    def _refuse_unknown_keywords(self, model_kwargs: dict[str, Any]) -> None:
        known = {"input_ids", "attention_mask", CACHE, "use_cache", "logits_to_keep"}
        remedies = {
            "position_ids": "positions are counted from attention_mask's first real token",
            "inputs_embeds": "pass input_ids",
            "output_attentions": "attention weights are not kept",
            "output_hidden_states": "call forward(), which returns latents",
        }
        for name, value in model_kwargs.items():
            if value is None or name in known:
                continue
            if name in remedies:
                raise ValueError(f"generate() does not take {name} for this model: {remedies[name]}.")
            candidates = (
                SAMPLER_KEYWORDS | CALL_KEYWORDS | known | {OLD_NAME, NEW_NAME} | set(GenerationConfig().to_dict())
            )
            raise ValueError(f"generate() has no keyword {name!r}{_nearest_only(name, candidates)}.")

    def init_continuous_batching(self, *args, **kwargs):
        """Refused: continuous batching passes positions and caches of its own. `generate_batch()` begins here."""
        raise NotImplementedError(
            "Continuous batching (generate_batch(), cache_implementation='paged') is not possible with a "
            "recurrent-depth model: call generate() with a batch."
        )

    def _refuse_other_modes(self, sampler: str | None, mode: GenerationMode) -> None:
        if sampler is not None and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(
                f"sampler={sampler!r} decodes greedily or by sampling; {mode.value} was asked for. "
                "Leave out its arguments (num_beams, assistant_model, penalty_alpha, dola_layers, ...) "
                "or leave out sampler."
            )

    def _get_candidate_generator(self, *, model_kwargs: dict, **kwargs):
        """transformers' own step; what the model itself is told about its depth and noise is not for the assistant."""
        own = ("num_steps", "state_scale", "seeds")
        return super()._get_candidate_generator(
            model_kwargs={name: value for name, value in model_kwargs.items() if name not in own}, **kwargs
        )

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        """Refuse by name what a sampler cannot do."""
        sampler = generation_config.sampler
        if sampler is not None:
            self._refuse_other_modes(sampler, generation_mode)
            if sampler == "diffusion_forcing" and not self.has_injected_embedding:
                raise ValueError(
                    f"sampler={sampler!r} needs a model with an injected embedding; {type(self).__name__} has "
                    "none. Use sampler='speculative_wavefront'."
                )
            if generation_mode_kwargs.get("synced_gpus") and sampler != "autoregressive":
                raise ValueError(f"synced_gpus=True is not supported with sampler={sampler!r}: ranks tick apart.")
            if generation_config.use_cache is False:
                raise ValueError(f"use_cache=False is not possible with sampler={sampler!r}: leave it out.")
            if generation_config.cache_implementation is not None:
                raise ValueError(
                    f"cache_implementation={generation_config.cache_implementation!r} is not possible with "
                    f"sampler={sampler!r}: its cache is a RecurrentDepthCache, leave the argument out."
                )
            if generation_config.guidance_scale not in (None, 1) and sampler != "autoregressive":
                raise ValueError(
                    f"guidance_scale={generation_config.guidance_scale} is not supported with sampler={sampler!r}: it "
                    "runs the model once more for every token, not for a wave. Use sampler='autoregressive'."
                )
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        """transformers' own step, after refusing an empty prompt (which it would index into)."""
        given = inputs if inputs is not None else model_kwargs.get("input_ids")
        if given is not None and 0 in given.shape:
            raise ValueError(f"The prompt is empty: input_ids has shape {tuple(given.shape)}. Pass at least one token.")
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> None:
        """A `RecurrentDepthCache` with room for the whole text, unless the caller brought one."""
        settings = generation_config._sampler_settings
        if generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            # Plain transformers decoding that does not pass through _sample: beams of a row share its state noise.
            seeds = row_seeds(settings.seed, batch_size)
            model_kwargs["seeds"] = seeds.repeat_interleave(generation_config.num_beams)
            model_kwargs |= {"num_steps": settings.num_steps, "state_scale": settings.state_scale}
        steps = settings.deepest
        cache = model_kwargs.get(CACHE)
        if cache is None:
            if generation_config.use_cache is not False:
                model_kwargs[CACHE] = self.new_cache(steps, settings.kv_sharing)
            return
        if not isinstance(cache, RecurrentDepthCache):
            raise TypeError(
                f"cache is a {type(cache).__name__}; a recurrent-depth model needs a RecurrentDepthCache: "
                "pass the one an earlier generate() returned, or model.new_cache(...)."
            )
        if generation_config.sampler is not None and cache.kv_sharing != settings.kv_sharing:
            raise ValueError(
                f"cache was made with kv_sharing={cache.kv_sharing!r}, the call asks for "
                f"{settings.kv_sharing!r}: pass kv_sharing={cache.kv_sharing!r}, or start a new cache."
            )
        if cache.kv_sharing == "none" and cache.num_steps < steps:
            raise ValueError(
                f"cache has room for num_steps={cache.num_steps}, the call asks for {steps}: "
                f"use at most {cache.num_steps}, or start a new cache."
            )

    def _validate_prompt(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: RecurrentDepthCache | None,
        columns: int,
        max_length: int,
    ) -> None:
        """Refuse ids, masks and lengths the model cannot read; `columns` counts all there are up to the last id."""
        vocabulary = self.config.padded_vocab_size
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"input_ids holds {low if low < 0 else high}, outside the vocabulary of {vocabulary} tokens: "
                "was the text encoded with this model's tokenizer?"
            )
        if attention_mask is not None:
            if not bool(attention_mask.any(-1).all()):
                raise ValueError("A row of attention_mask is all zeros: its prompt is empty. Pass at least one token.")
            if not bool((attention_mask.long().diff(dim=-1) >= 0).all()):
                raise ValueError(
                    "attention_mask has padding after a real token; prompts must be padded on the left: "
                    "set tokenizer.padding_side = 'left'. "
                    "(Where no attention_mask is passed, transformers takes pad tokens for padding.)"
                )
        seen = cache.columns if cache is not None else 0
        if columns <= seen or input_ids.shape[1] not in (columns, columns - seen):
            raise ValueError(
                f"cache holds {seen} columns; the call speaks of {columns} and has {input_ids.shape[1]} ids: "
                "pass the whole text, or the new ids with an attention_mask over the whole text."
            )
        if cache is not None and cache.batch_size not in (-1, len(input_ids)):
            raise ValueError(f"cache has {cache.batch_size} rows, the batch {len(input_ids)}.")
        limit, length = self.config.max_position_embeddings, columns - input_ids.shape[1] + max_length
        if length > limit:
            remedy = (
                f"Use max_new_tokens <= {limit - columns}."
                if columns < limit
                else f"Shorten it to fewer than {limit} tokens."
            )
            raise ValueError(
                f"A prompt of {columns} tokens continued to {length} exceeds the context of {limit}. {remedy}"
            )

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer=None,
        **model_kwargs,
    ):
        """Greedy or sampled decoding by the sampler of the generation config."""
        attention_mask = model_kwargs.get("attention_mask")
        if attention_mask is not None:
            attention_mask = model_kwargs["attention_mask"] = attention_mask.long()
        cache = model_kwargs.get(CACHE)
        columns = (
            getattr(generation_config, "_mask_length", input_ids.shape[1])
            if attention_mask is None
            else attention_mask.shape[1]
        )
        self._validate_prompt(input_ids, attention_mask, cache, columns, generation_config.max_length)
        sampler = generation_config.sampler
        config = generation_config._sampler_settings
        if sampler in WAVEFRONT_SAMPLERS:
            if any(isinstance(p, SynthIDTextWatermarkLogitsProcessor) for p in logits_processor):
                raise ValueError(
                    f"SynthID watermarking is not supported with sampler={sampler!r}: it keeps a state from token to "
                    "token, which drafts would spoil. Use sampler='autoregressive'."
                )
            pad = generation_config._pad_token_tensor
            return Batch(
                self,
                WAVEFRONT_SAMPLERS[sampler],
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                config,
                streamer,
                attention_mask,
                cache,
                columns,
                None if pad is None else int(pad),
                generation_config._return_trace,
            ).run()
        batch, length = input_ids.shape
        seeds = row_seeds(config.seed, batch, input_ids.device)
        depth_and_noise = {"num_steps": config.num_steps, "state_scale": config.state_scale, "seeds": seeds}
        model_kwargs |= depth_and_noise
        for processor in logits_processor:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                # It calls the model for the unconditional text without any of this.
                processor.model = partial(self, **depth_and_noise)
                if generation_config.use_cache is not False:
                    cache = self.new_cache(config.deepest, config.kv_sharing)
                    processor.unconditional_context[CACHE] = cache
        scores = None
        if sampler is not None and generation_config.do_sample:
            # The same keyed noise as the parallel samplers; the argmax of transformers' greedy loop then samples.
            seen = torch.full_like(seeds, columns) if attention_mask is None else attention_mask.sum(-1)
            scores = [] if generation_config.output_scores else None
            noise = KeyedGumbelProcessor(seeds, length - seen, scores)
            logits_processor = LogitsProcessorList([*logits_processor, noise])
            generation_config.do_sample = False
        output = super()._sample(
            input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
        )
        if scores and generation_config.return_dict_in_generate:
            output.scores = tuple(scores)
        return output


def _nearest_only(name: str, candidates: set[str]) -> str:
    """The nearest candidate, without the list of all when none is near."""
    hint = nearest(name, candidates)
    return hint if "did you mean" in hint else ""
