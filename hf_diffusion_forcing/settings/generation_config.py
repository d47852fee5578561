"""The generation config of a recurrent-depth model: transformers' own plus the sampler's settings."""

import copy
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedConfig

from .autoregressive import PlainDecodingConfig
from .presets import check_lossless, preset, preset_sampler
from .sampler_config import SAMPLER_CONFIGS, SamplerConfig, merged, plain, sampler_config_class, sampler_keywords
from .trained_depth import warn_beyond_training

SAMPLER_NAMES = ("sampler", "sampler_preset", "lossless", "sampler_config")
"""The sampler attributes of a generation config; each is also a keyword of `generate()`."""

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class RecurrentDepthGenerationConfig(GenerationConfig):
    """`GenerationConfig` with a sampler.

    A model's `generation_config` always has this class: a plain `GenerationConfig` that is loaded, assigned or passed
    is copied into it. The file is an ordinary `generation_config.json`, which transformers alone can read too.

    Attributes:
        sampler: "diffusion_forcing", "speculative_wavefront", "adaptive" or "autoregressive"; False is plain
            transformers decoding; None is not set.
        sampler_preset: "quality", "balanced", "fast", "lossless" or "auto".
        lossless: with `sampler_preset="auto"`, whether it chooses among settings of the lossless wavefront, whose text
            is that of autoregression; None is False.
        sampler_config: the sampler's settings, as a dict of some of them or as its dataclass. The dataclass also names
            the sampler, and all its fields apply, defaults too.
    """

    # Class attributes, so that `del config.sampler` resets to None.
    sampler: str | Literal[False] | None = None
    sampler_preset: str | None = None
    lossless: bool | None = None
    sampler_config: SamplerConfig | dict[str, Any] | None = None
    return_trace: bool | str = False
    """Set by `generate()` for one call; never stored."""

    @classmethod
    def of(cls, config: GenerationConfig) -> "RecurrentDepthGenerationConfig":
        """The config itself if it has this class, otherwise a copy that does."""
        if isinstance(config, cls):
            return config
        own = cls.__new__(cls)
        own.__dict__.update(vars(config))
        return own

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig | dict[str, Any]) -> "RecurrentDepthGenerationConfig":
        """Take only the special tokens from a model's config: the generation settings that transformers 4 wrote there
        (`max_length` 20, ...) are mere defaults."""
        values = model_config if isinstance(model_config, dict) else model_config.to_dict()
        return cls(**{name: values.get(name) for name in TOKEN_IDS})

    @property
    def names_sampler(self) -> bool:
        """Whether any sampler attribute is set."""
        return any(getattr(self, name) is not None for name in SAMPLER_NAMES)

    def resolve(
        self,
        model_config: PreTrainedConfig,
        generation_config: GenerationConfig | None = None,
        *,
        sampler: str | Literal[False] | None = None,
        sampler_preset: str | None = None,
        lossless: bool | None = None,
        sampler_config: SamplerConfig | dict[str, Any] | None = None,
        cache_sharing: str | int | None = None,
        **keywords: Any,
    ) -> SamplerConfig:
        """The settings that a call uses, validated and with every depth filled in.

        `self` is the model's generation config; the arguments come from the call. Each setting comes from the first
        of these that has it:

        1. a keyword of the call (`wavefront=8`);
        2. `sampler_config` of the call;
        3. `sampler_config` of a generation config: the one passed, if any sampler attribute of it is set, otherwise
           the model's;
        4. the preset, of the call or else of that generation config; `lossless` likewise, and a stored one counts only
           with the preset "auto";
        5. the sampler's default.

        A cache that is passed in brings its `kv_sharing`, which comes after what the call says (1, 2 and a generation
        config passed with it) and before the rest.

        The sampler comes from the first of `sampler`, a dataclass passed as `sampler_config`, `sampler_preset` and
        that generation config. Settings and presets stored for another sampler are ignored. A source that sets
        `exit_criterion` also drops the `exit_threshold` of the sources below it, which was meant for another
        criterion. `sampler=False` (plain transformers decoding) ignores everything stored for a sampler.

        Args:
            model_config: has `mean_recurrence`, the default depth, and `model_type`, which selects the presets.
            generation_config: the one passed with the call.
            sampler, sampler_preset, lossless, sampler_config, keywords: arguments of the call.
            cache_sharing: `kv_sharing` of the cache passed with the call.

        Returns:
            The sampler's dataclass; a `PlainDecodingConfig` without a sampler.

        Raises:
            TypeError: a value of the wrong type.
            ValueError: an unknown sampler, preset or setting, a value out of range, or values that do not fit together.
        """
        passed = None if generation_config is None else self.of(generation_config)
        source = passed if passed is not None and passed.names_sampler else self
        for config in filter(None, (source, passed)):
            config.refuse_misplaced()
        stored_sampler, stored_preset, stored = source.stored()
        sampler, called = named_settings(sampler, sampler_config)
        if lossless is not None and sampler_preset is None and stored_preset == "auto":
            sampler_preset = stored_preset
        check_lossless(lossless, sampler_preset)
        if lossless is None and sampler_preset in (None, "auto") and sampler in (None, stored_sampler):
            lossless = source.lossless
        if sampler is None:
            sampler = stored_sampler if sampler_preset is None else preset_sampler(sampler_preset, lossless)
        if stored_sampler not in (None, sampler) or (sampler is False and stored_sampler is None):
            stored_preset, stored = None, {}
        sampler_preset = stored_preset if sampler_preset is None else sampler_preset

        of_cache = {} if cache_sharing is None else {"kv_sharing": cache_sharing}
        settings = merged(*((of_cache, stored) if source is passed else (stored, of_cache)), called, keywords)
        config_class: type[SamplerConfig] = PlainDecodingConfig
        if sampler is not None and sampler is not False:
            config_class = sampler_config_class(sampler)
        refuse_settings_of_others(config_class, settings)
        if sampler_preset is not None:
            depth = settings.get("num_steps") or model_config.mean_recurrence
            settings = merged(preset(sampler_preset, sampler, model_config.model_type, depth, lossless), settings)
        resolved = config_class.from_dict(settings).resolve(model_config.mean_recurrence)
        warn_beyond_training(model_config, resolved.deepest)
        return resolved

    def stored(self) -> tuple[str | Literal[False] | None, str | None, dict[str, Any]]:
        """The stored sampler, preset and settings; a preset alone implies its sampler.

        Raises:
            TypeError: `lossless` is no bool, or `sampler_config` is neither a dataclass nor a dict.
            ValueError: `lossless` does not fit the preset, or the settings are for another sampler.
        """
        check_lossless(self.lossless, self.sampler_preset)
        sampler, settings = named_settings(self.sampler, self.sampler_config)
        if sampler is None and self.sampler_preset is not None:
            sampler = preset_sampler(self.sampler_preset, self.lossless)
        return sampler, self.sampler_preset, settings

    def refuse_misplaced(self) -> None:
        """Refuse settings in the wrong place, where they would be ignored.

        Raises:
            ValueError: there is one; the message names it.
        """
        if self.return_trace:
            raise ValueError("return_trace was set on the generation config: pass it to generate() itself.")
        if misplaced := sorted(sampler_keywords() & vars(self).keys()):
            raise ValueError(f"{misplaced[0]} was set on the generation config itself: set it in its sampler_config.")

    def with_settings(self, **settings: Any) -> "RecurrentDepthGenerationConfig":
        """A copy whose sampler settings are updated with these."""
        config = copy.copy(self)
        config.sampler, _, stored = self.stored()
        config.sampler_config = merged(stored, settings)
        return config

    def to_dict(self) -> dict[str, Any]:
        """transformers' own dict, without sampler attributes that are None."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name not in SAMPLER_NAMES or value is not None}

    def to_json_string(self, *args: Any, **kwargs: Any) -> str:
        """transformers' own JSON, with hooks written by name.

        Raises:
            TypeError: a hook's class is not registered.
            ValueError: `sampler_config` is for another sampler than `sampler`.
        """
        written = copy.copy(self)
        if isinstance(self.sampler_config, SamplerConfig):
            written.sampler, _ = named_settings(self.sampler, self.sampler_config)
        written.sampler_config = plain(self.sampler_config)
        return super(RecurrentDepthGenerationConfig, written).to_json_string(*args, **kwargs)


def named_settings(
    sampler: str | Literal[False] | None, sampler_config: SamplerConfig | dict[str, Any] | None
) -> tuple[str | Literal[False] | None, dict[str, Any]]:
    """The sampler that either argument names, and the settings as a dict.

    Raises:
        TypeError: `sampler_config` is neither a dataclass nor a dict.
        ValueError: the two are for different samplers.
    """
    if isinstance(sampler_config, SamplerConfig):
        if sampler is not None and sampler != sampler_config.sampler:
            raise ValueError(
                f"sampler={sampler!r} does not fit sampler_config={type(sampler_config).__name__}, which is for "
                f"{sampler_config.sampler!r}: leave out one of them."
            )
        return sampler_config.sampler, {name: getattr(sampler_config, name) for name in sampler_config.fields()}
    if not isinstance(sampler_config, dict | None):
        raise TypeError(f"sampler_config={sampler_config!r} must be a SamplerConfig or a dict of settings.")
    return sampler, sampler_config or {}


def refuse_settings_of_others(config_class: type[SamplerConfig], settings: dict[str, Any]) -> None:
    """Refuse a setting that only other samplers have.

    Raises:
        ValueError: there is one; the message names it, its value and the samplers that take it.
    """
    for name, value in settings.items():
        takers = [sampler for sampler, other in SAMPLER_CONFIGS.items() if name in other.fields()]
        if takers and name not in config_class.fields():
            decoding = (
                f"sampler={config_class.sampler!r}" if config_class.sampler else "plain decoding, without a sampler"
            )
            raise ValueError(
                f"{name}={value!r} is not a setting of {decoding}: pass sampler={' or '.join(map(repr, takers))}, or "
                "leave it out."
            )
