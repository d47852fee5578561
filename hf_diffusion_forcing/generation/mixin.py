"""`generate()` with `sampler=`: transformers' own generation with a decoding loop chosen by name."""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation import GenerationMode

from ..cache import RecurrentDepthCache, check_cache
from ..compat import (
    CACHE,
    NEW_NAME,
    OLD_NAME,
    CacheGenerationMixin,
    is_from_model_config,
    pad_token_id,
)
from ..models.attention_choice import check_attentions
from ..models.forward_call import check_embeds_allowed
from ..models.token_types import refuse_token_types
from ..precision import warn_if_slow
from ..randomness import row_seeds
from ..settings.generation_config import SAMPLER_NAMES, TOKEN_IDS, RecurrentDepthGenerationConfig
from ..settings.sampler_config import SamplerConfig, sampler_keywords
from ..settings.validation import nearest
from .batch import Batch
from .choice import KeyedGumbelProcessor
from .compiled import check_compilable
from .prepared import Prepared, wants_prepared
from .prompt_inputs import PromptInputs, check_embeds, check_ids, check_position_ids, columns_of
from .samplers import SAMPLERS, check_model, with_ticks
from .token_types import check_token_types

MODEL_KEYWORDS = {
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    CACHE,
    "use_cache",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
}
"""Keywords of `generate()` that are neither transformers' settings nor a sampler's."""


class RecurrentDepthGenerationMixin(CacheGenerationMixin):
    """`GenerationMixin` for recurrent-depth models.

    `generate()` takes `sampler="diffusion_forcing"`, `"speculative_wavefront"`, `"adaptive"` or `"autoregressive"`,
    every field of that sampler's config as a keyword, `sampler_config=`, `sampler_preset=` and `lossless=`; what is not
    passed comes from the generation config (`RecurrentDepthGenerationConfig.resolve` has the order). If no sampler is
    set anywhere, or with `sampler=False`, transformers decodes as usual: the keywords of `"autoregressive"` apply, and
    sampling draws from torch's generator. With `return_trace=True` (or `"latents"`) and
    `return_dict_in_generate=True` the output of a sampler with ticks has a `Trace`.
    """

    generation_config_class = RecurrentDepthGenerationConfig

    @property
    def generation_config(self) -> RecurrentDepthGenerationConfig | None:
        """The model's defaults for `generate()`; a plain `GenerationConfig` is copied on assignment."""
        return vars(self).get("generation_config")

    @generation_config.setter
    def generation_config(self, config: GenerationConfig | None) -> None:
        self.__dict__["generation_config"] = None if config is None else RecurrentDepthGenerationConfig.of(config)

    def adjust_generation_fn(self, *args, **kwargs) -> None:
        """transformers' own loading step. If the checkpoint has no generation config, transformers derives one from the
        model's config; only its special tokens are kept."""
        super().adjust_generation_fn(*args, **kwargs)
        loaded = self.generation_config
        if is_from_model_config(loaded):
            ids = {name: getattr(self.config, name, None) for name in TOKEN_IDS}
            ids |= {name: getattr(loaded, name) for name in TOKEN_IDS if getattr(loaded, name) is not None}
            self.generation_config = RecurrentDepthGenerationConfig(**ids)

    def decoding_config(
        self, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> RecurrentDepthGenerationConfig:
        """The settings `generate()` would use with these arguments, checked without running the model.

        Returns:
            The generation config; its `sampler_config` is the sampler's dataclass with every depth filled in.

        Raises:
            ValueError, TypeError: as `generate()`, except for checks of the prompt.
        """
        config, _ = self._prepare_generation_config(generation_config, **kwargs)
        self._validate_generation_mode(config.get_generation_mode(), config, {})
        return config

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[RecurrentDepthGenerationConfig, dict]:
        """transformers' own step, with the sampler's keywords taken out of the call and resolved."""
        return_trace = kwargs.pop("return_trace", False)
        call = {name: kwargs.pop(name) for name in (sampler_keywords() | set(SAMPLER_NAMES)) & kwargs.keys()}
        prepared, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        self._refuse_keywords(model_kwargs)
        prepared = RecurrentDepthGenerationConfig.of(prepared)
        cache = model_kwargs.get(CACHE)
        if isinstance(cache, RecurrentDepthCache):
            call["cache_sharing"] = cache.kv_sharing
        settings = self.generation_config.resolve(self.config, generation_config, **call)
        prepared.sampler, prepared.sampler_config = settings.sampler, settings
        prepared.sampler_preset = prepared.lossless = None
        # Also here: before it validates modes, transformers fetches code from the Hub for some of them.
        self._refuse_other_modes(prepared.sampler, prepared.get_generation_mode())
        self._validate_return_trace(return_trace, prepared)
        prepared.return_trace = return_trace
        return prepared, model_kwargs

    def _validate_return_trace(self, return_trace: Any, generation_config: RecurrentDepthGenerationConfig) -> None:
        if not isinstance(return_trace, (bool, str)):
            raise TypeError(f"return_trace={return_trace!r} must be True, False or 'latents'.")
        if isinstance(return_trace, str) and return_trace != "latents":
            raise ValueError(f"return_trace={return_trace!r} is unknown: use True, False or 'latents'.")
        sampler = generation_config.sampler
        if return_trace and not (sampler and SAMPLERS[sampler].has_ticks):
            raise ValueError(
                f"return_trace={return_trace!r} is not possible with sampler={sampler!r}, which has no ticks: "
                f"pass sampler={with_ticks()}."
            )
        if return_trace and not generation_config.return_dict_in_generate:
            raise ValueError(f"return_trace={return_trace!r} needs return_dict_in_generate=True: pass that too.")

    def _refuse_keywords(self, model_kwargs: dict[str, Any]) -> None:
        """Refuse keywords that are unknown or that the model does not support; drop those that have no effect."""
        if not self.has_bidirectional_prompt:
            refuse_token_types(model_kwargs.pop("token_type_ids", None))
        model_kwargs.pop("cache_position", None)
        if model_kwargs.get("output_attentions"):
            check_attentions(self.config)
        for name, value in model_kwargs.items():
            if value is None or name in MODEL_KEYWORDS:
                continue
            candidates = sampler_keywords() | {*SAMPLER_NAMES, "return_trace", *MODEL_KEYWORDS, OLD_NAME, NEW_NAME}
            candidates |= set(GenerationConfig().to_dict())
            raise ValueError(
                f"generate() has no keyword {name!r}{_nearest_only(name, candidates) or ': leave it out.'}"
            )

    def _refuse_other_modes(self, sampler: str | Literal[False], mode: GenerationMode) -> None:
        if sampler and mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            raise ValueError(
                f"sampler={sampler!r} cannot do {mode.value}, only greedy decoding and sampling. "
                "Leave out its arguments (num_beams, assistant_model, penalty_alpha, dola_layers, ...), "
                "or pass sampler=False for plain transformers decoding."
            )

    def _get_candidate_generator(self, *, model_kwargs: dict, **kwargs):
        """transformers' own step; the assistant does not get this model's depth and noise arguments."""
        own = ("num_steps", "state_scale", "seeds")
        return super()._get_candidate_generator(
            model_kwargs={name: value for name, value in model_kwargs.items() if name not in own}, **kwargs
        )

    def _validate_generation_mode(self, generation_mode, generation_config, generation_mode_kwargs):
        """Refuse arguments that the model or the sampler does not support."""
        sampler = generation_config.sampler
        if generation_config.cache_implementation is not None:
            owner = f"sampler={sampler!r}" if sampler else "a recurrent-depth model"
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is not possible with {owner}, which "
                "uses a RecurrentDepthCache: leave it out."
            )
        if sampler:
            self._refuse_other_modes(sampler, generation_mode)
            check_model(sampler, self)
            settings, owner = generation_config.sampler_config, f"sampler={sampler!r}"
            has_ticks = SAMPLERS[sampler].has_ticks or settings.needs_ticks
            if settings.is_exact:
                owner += " and exact=True"
            if settings.is_compiled:
                check_compilable(self)
                owner += " and compile=True"
            if generation_mode_kwargs.get("synced_gpus") and has_ticks:
                raise ValueError(
                    f"synced_gpus=True is not supported with {owner}: "
                    "ranks run different numbers of ticks. Leave it out."
                )
            if generation_config.use_cache is False:
                raise ValueError(
                    f"use_cache=False is not possible with sampler={sampler!r}: leave it out, or pass sampler=False "
                    "for plain transformers decoding."
                )
            if generation_config.guidance_scale not in (None, 1) and has_ticks:
                raise ValueError(
                    f"guidance_scale={generation_config.guidance_scale} is not supported with {owner}: guidance works "
                    "one token at a time, in transformers' own loop. Use sampler='autoregressive' without exact or "
                    "compile."
                )
        super()._validate_generation_mode(generation_mode, generation_config, generation_mode_kwargs)

    def _prepare_model_inputs(self, inputs, bos_token_id, model_kwargs):
        """transformers' own step, after refusing an empty prompt (on which it would raise an IndexError)."""
        name, given = "inputs_embeds", model_kwargs.get("inputs_embeds")
        if given is None:
            name, given = "input_ids", inputs if inputs is not None else model_kwargs.get("input_ids")
        else:
            check_embeds_allowed(self, given)
            check_embeds(given, model_kwargs.get("attention_mask"))
        if given is not None and 0 in given.shape:
            raise ValueError(f"The prompt is empty: {name} has shape {tuple(given.shape)}. Pass at least one token.")
        return super()._prepare_model_inputs(inputs, bos_token_id, model_kwargs)

    def _prepare_attention_mask_for_generation(self, inputs_tensor, generation_config, model_kwargs) -> torch.Tensor:
        """transformers' own step for a call without a mask, which makes every pad id padding: here only those before a
        row's first other id are. The last id of a prompt always counts."""
        mask = super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
        mask[:, -1] = 1
        return mask.cummax(dim=-1).values

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> None:
        """Make a `RecurrentDepthCache` unless the caller passed one."""
        check_token_types(self, model_kwargs, generation_config, generation_mode)
        settings = generation_config.sampler_config
        if generation_mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            # Plain transformers decoding without _sample, such as beam search: a row's beams share its state noise.
            seeds = row_seeds(settings.seed, batch_size)
            model_kwargs["seeds"] = seeds.repeat_interleave(generation_config.num_beams)
            model_kwargs |= {"num_steps": settings.num_steps, "state_scale": settings.state_scale}
        steps = settings.deepest
        cache = model_kwargs.get(CACHE)
        if cache is None:
            if generation_config.use_cache is not False:
                model_kwargs[CACHE] = self.new_cache(steps, settings.kv_sharing)
            return
        check_cache(cache)
        if generation_config.sampler and cache.kv_sharing != settings.kv_sharing:
            raise ValueError(
                f"cache was made with kv_sharing={cache.kv_sharing!r}, but the call uses "
                f"{settings.kv_sharing!r}: pass kv_sharing={cache.kv_sharing!r}, or start a new cache."
            )
        if cache.kv_sharing == "none" and cache.num_steps < steps:
            raise ValueError(
                f"cache has room for num_steps={cache.num_steps}, but the call uses {steps}: "
                f"use at most {cache.num_steps}, or start a new cache."
            )

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, num_new_tokens=1, **kwargs):
        """transformers' own step, which would make the new tokens a part of a bidirectional prompt."""
        token_types = model_kwargs.pop("token_type_ids", None)
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, num_new_tokens=num_new_tokens, **kwargs
        )
        if token_types is not None and model_kwargs.get(CACHE) is None:
            # Without a cache the prompt is read again.
            model_kwargs["token_type_ids"] = F.pad(token_types, (0, num_new_tokens))
        return model_kwargs

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
        """Decode, greedily or by sampling, with the sampler of the generation config."""
        warn_if_slow(self)
        check_ids(input_ids, self.config.padded_vocab_size)
        attention_mask = model_kwargs.get("attention_mask")
        if attention_mask is not None:
            attention_mask = model_kwargs["attention_mask"] = attention_mask.long()
        # transformers makes them where the caller did not pass any.
        if (position_ids := model_kwargs.pop("position_ids", None)) is not None:
            columns = columns_of(attention_mask, model_kwargs.get("inputs_embeds"), generation_config)
            check_position_ids(position_ids, attention_mask, (len(input_ids), columns))
        cache = model_kwargs.get(CACHE)
        prompt = PromptInputs.of(self, input_ids, generation_config, model_kwargs)
        prompt.check(self.config, cache, generation_config.max_length)
        sampler = generation_config.sampler
        config = generation_config.sampler_config
        if (wanted := wants_prepared()) is not None:
            pad = pad_token_id(generation_config)
            wanted.append(Prepared(prompt, logits_processor, stopping_criteria, generation_config, streamer, pad))
            return input_ids
        if sampler and (SAMPLERS[sampler].has_ticks or config.needs_ticks):
            return Batch(
                self,
                SAMPLERS[sampler].ticking(),
                prompt,
                logits_processor,
                stopping_criteria,
                generation_config,
                config,
                streamer,
                cache,
                pad_token_id(generation_config),
                generation_config.return_trace,
            ).run()
        return self._sample_autoregressively(
            prompt,
            logits_processor,
            stopping_criteria,
            generation_config,
            config,
            synced_gpus,
            streamer,
            model_kwargs,
        )

    def _sample_autoregressively(
        self,
        prompt: PromptInputs,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: RecurrentDepthGenerationConfig,
        config: SamplerConfig,
        synced_gpus: bool,
        streamer,
        model_kwargs: dict[str, Any],
    ):
        """transformers' own loop, with depth, state noise and sampling noise from the settings."""
        batch, length = prompt.ids.shape
        seeds = row_seeds(config.seed, batch, prompt.ids.device)
        depth_and_noise = {"num_steps": config.num_steps, "state_scale": config.state_scale, "seeds": seeds}
        model_kwargs |= depth_and_noise
        for processor in logits_processor:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                # It calls the model for the unconditional text without these arguments.
                processor.model = partial(self, **depth_and_noise)  # type: ignore[misc]  # self is the model
                if generation_config.use_cache is not False:
                    cache = self.new_cache(config.deepest, config.kv_sharing)
                    processor.unconditional_context[CACHE] = cache
        scores: list[torch.Tensor] | None = None
        if generation_config.sampler and generation_config.do_sample:
            # Add the keyed noise of the parallel samplers; the argmax of transformers' greedy loop then samples.
            seen = torch.full_like(seeds, prompt.columns) if prompt.mask is None else prompt.mask.sum(-1)
            scores = [] if generation_config.output_scores else None
            noise = KeyedGumbelProcessor(seeds, length - seen, scores)
            logits_processor = LogitsProcessorList([*logits_processor, noise])
            generation_config.do_sample = False
        output = super()._sample(
            prompt.ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
        )
        if scores and generation_config.return_dict_in_generate:
            output.scores = tuple(scores)
        return output


def _nearest_only(name: str, candidates: set[str]) -> str:
    """`nearest`, or nothing if no candidate is close."""
    hint = nearest(name, candidates)
    return hint if "did you mean" in hint else ""
