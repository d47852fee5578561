"""Sampler settings: one dataclass per sampler, which travels inside `generation_config.json`."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..files import write_file
from ..hooks.exit_criteria import ExitCriterion, exit_criterion
from ..hooks.latent_processors import (
    LATENT_PROCESSORS,
    SCHEDULES,
    ContinuousCompute,
    EmbeddingMomentum,
    LatentProcessor,
    LatentProcessorList,
    StateNoise,
    latent_processor,
)
from ..version import __version__
from .presets import preset
from .validation import check_flag, check_integer, check_number, nearest

CONFIG_NAME = "sampler_config.json"


@dataclass(kw_only=True)
class SamplerConfig:
    """Settings every sampler has. Each field is also a keyword of `generate()`.

    Args:
        num_steps: recurrences of a token (its budget); the model's `mean_recurrence` when None.
        kv_sharing: "last" (one entry per layer and position, overwritten by later recurrences), "none" (one entry
            per recurrence) or a number of entries n: recurrence k writes and reads entry k modulo n.
        state_scale: factor on the random state start; 0.0 starts from zeros.
        seed: an int (row i of the batch uses seed + i) or one int per row; None draws one from torch's generator.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range. Both name the field, the value and what is allowed.
    """

    sampler: ClassVar[str]

    num_steps: int | None = None
    kv_sharing: str | int = "none"
    state_scale: float = 1.0
    seed: int | list[int] | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Check every field; called on construction and by `generate()`."""
        if self.num_steps is not None:
            check_integer("num_steps", self.num_steps, 1)
        if self.kv_sharing not in ("last", "none"):
            if isinstance(self.kv_sharing, str):
                raise ValueError(f"kv_sharing={self.kv_sharing!r} is unknown: use 'last', 'none' or a number of slots.")
            check_integer("kv_sharing", self.kv_sharing, 1)
        check_number("state_scale", self.state_scale)
        seeds = self.seed if isinstance(self.seed, list) else [self.seed]
        for seed in seeds:
            if not (seed is None and self.seed is None) and (isinstance(seed, bool) or not isinstance(seed, int)):
                raise TypeError(f"seed={self.seed!r} must be an int, a list of one int per row, or None.")
            if seed is not None and not -(2**63) <= seed < 2**63:
                raise ValueError(f"seed={seed} must fit in 64 bits.")

    def resolve(self, mean_recurrence: int) -> "SamplerConfig":
        """The settings with every depth filled in, validated together.

        Args:
            mean_recurrence: the model's own depth, the default of `num_steps`.
        """
        kv_sharing = "last" if self.kv_sharing == 1 else self.kv_sharing
        return dataclasses.replace(self, num_steps=self.num_steps or mean_recurrence, kv_sharing=kv_sharing)

    @property
    def deepest(self) -> int:
        """The most recurrences a position may have, of resolved settings: the entries of `kv_sharing="none"`."""
        return self.num_steps

    @property
    def prompt_steps(self) -> int:
        """Recurrences of the prompt, of resolved settings."""
        return self.num_steps

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def update(self, **settings) -> dict[str, Any]:
        """Change settings, all or none of them; returns those that are not settings of this sampler.

        Raises:
            TypeError, ValueError: as on construction; nothing is changed then.
        """
        known = {name: value for name, value in settings.items() if name in self.fields()}
        dataclasses.replace(self, **known)
        for name, value in known.items():
            setattr(self, name, value)
        return {name: value for name, value in settings.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values.

        Raises:
            TypeError: a criterion or processor of an unregistered class, which has no name to be written by.
        """
        return {name: _plain(getattr(self, name)) for name in self.fields()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Those of `to_dict()` that are not the defaults."""
        default = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != default[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """What `save_pretrained` writes: the sampler's name, its settings (by default those that differ from the
        defaults) and the version that wrote them."""
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        stored = {"sampler": self.sampler, "sampler_config": settings, "hf_diffusion_forcing_version": __version__}
        return json.dumps(stored, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SamplerConfig":
        """A config from `to_dict()`'s output. An unknown key is a ValueError that names the nearest field."""
        if not isinstance(values, dict):
            raise TypeError(f"{cls.__name__} needs a dict of settings, not {type(values).__name__}.")
        for key in values:
            if key not in cls.fields():
                raise ValueError(
                    f"{cls.__name__} has no setting {key!r}{nearest(str(key), cls.fields())}. "
                    f"(This is version {__version__}; a file of a newer one may know more.)"
                )
        return cls(**values)

    @classmethod
    def from_preset(cls, name: str, model_type: str | None = None, **settings) -> "SamplerConfig":
        """A preset's settings, with others on top.

        Args:
            name: "quality", "balanced", "fast" or "lossless".
            model_type: a family's own presets, where it has them.

        Raises:
            ValueError: an unknown preset, or another sampler's.
        """
        return cls.from_dict(merged(preset(name, cls.sampler, model_type, settings.get("num_steps")), settings))

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `sampler_config.json` into a folder."""
        text = self.to_json_string()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG_NAME, text)

    @classmethod
    def from_pretrained(cls, save_directory: str | os.PathLike) -> "SamplerConfig":
        """Read `sampler_config.json` from a folder; on `SamplerConfig` itself, whichever sampler's it is.

        Raises:
            ValueError: the file is for another sampler, or holds unknown settings.
        """
        stored = json.loads((Path(save_directory) / CONFIG_NAME).read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"{CONFIG_NAME} in {save_directory} holds no settings.")
        config_class = sampler_config_class(stored.get("sampler")) if cls is SamplerConfig else cls
        if stored.get("sampler") != config_class.sampler:
            raise ValueError(f"{CONFIG_NAME} in {save_directory} is not for sampler={config_class.sampler!r}.")
        try:
            return config_class.from_dict(stored.get("sampler_config", {}))
        except (TypeError, ValueError) as error:
            writer = stored.get("hf_diffusion_forcing_version", "an unknown version")
            raise type(error)(f"{CONFIG_NAME} in {save_directory}, written by {writer}: {error}") from error


@dataclass(kw_only=True)
class AutoregressiveConfig(SamplerConfig):
    """Settings of `sampler="autoregressive"`: one token at a time, `num_steps` recurrences each."""

    sampler: ClassVar[str] = "autoregressive"


@dataclass(kw_only=True)
class EarlyExitConfig(SamplerConfig):
    """Settings of the samplers that stop refining a position when it has converged.

    Args:
        exit_criterion: when a position has converged: a name ("latent_difference", "kl", ...), a dict
            {"name": ..., **parameters}, {"any": [...]} or {"all": [...]} of such, or an `ExitCriterion`.
        exit_threshold: the criterion's threshold; its own default when None (0.03 for "latent_difference").
        prefill_steps: recurrences of the prompt; `num_steps` when None.
        adaptive_prefill: stop refining the prompt where it has converged, its longest converged prefix at a time;
            `prefill_steps` is then the most.
    """

    kv_sharing: str | int = "last"
    exit_criterion: str | dict | list | ExitCriterion = "latent_difference"
    exit_threshold: float | None = None
    prefill_steps: int | None = None
    adaptive_prefill: bool = False

    def validate(self) -> None:
        super().validate()
        check_flag("adaptive_prefill", self.adaptive_prefill)
        if self.exit_threshold is not None:
            check_number("exit_threshold", self.exit_threshold)
        if self.prefill_steps is not None:
            check_integer("prefill_steps", self.prefill_steps, 1)
        self.criterion()

    def criterion(self) -> ExitCriterion:
        """The exit criterion these settings name.

        Raises:
            ValueError: `exit_threshold` is given and the criterion has no threshold.
        """
        return exit_criterion(self.exit_criterion, self.exit_threshold)

    def resolve(self, mean_recurrence: int) -> "EarlyExitConfig":
        settings = super().resolve(mean_recurrence)
        return dataclasses.replace(settings, prefill_steps=settings.prefill_steps or settings.num_steps)

    @property
    def deepest(self) -> int:
        return max(self.num_steps, self.prefill_steps)

    @property
    def prompt_steps(self) -> int:
        return self.prefill_steps


@dataclass(kw_only=True)
class AdaptiveConfig(EarlyExitConfig):
    """Settings of `sampler="adaptive"`: one token at a time, refined until it has converged, `num_steps` at most."""

    sampler: ClassVar[str] = "adaptive"


@dataclass(kw_only=True)
class DiffusionForcingConfig(EarlyExitConfig):
    """Settings of `sampler="diffusion_forcing"` (arXiv 2510.14961, Algorithm 1).

    Args:
        wavefront: most positions refined at once; "auto" measures what widths cost on this machine, sees how many
            recurrences the prompt needs, and chooses it (and `inner_recurrence`, unless that is given).
        headway: new positions a tick may add.
        inner_recurrence: core passes in a tick (r'); when None 4, or the token's budget where that is less.
        max_steps: recurrences after which the front position freezes anyway; `num_steps` when None. Ticks are whole:
            the front gets the largest multiple of `inner_recurrence` within it.
        embedding_momentum: eta, the share of a position's earlier injected embedding kept in a tick.
        state_noise: beta, the share of fresh noise mixed into states at the start of a tick.
        noise_schedule: how beta falls with a position's recurrences: "constant", "linear", "square_root", "dampened".
        continuous_compute: a new position starts from its neighbour's state instead of from noise.
        latent_processors: more of them, applied after those that the fields above make: names, dicts
            {"name": ..., **parameters} or instances of `LatentProcessor`.
    """

    sampler: ClassVar[str] = "diffusion_forcing"

    wavefront: int | str = 32
    headway: int = 1
    inner_recurrence: int | None = None
    max_steps: int | None = None
    embedding_momentum: float = 0.0
    state_noise: float = 0.0
    noise_schedule: str = "constant"
    continuous_compute: bool = False
    latent_processors: list[str | dict | LatentProcessor] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        if self.wavefront != "auto":
            if isinstance(self.wavefront, str):
                raise ValueError(f"wavefront={self.wavefront!r} is unknown: use 'auto' or a number of positions.")
            check_integer("wavefront", self.wavefront, 1)
        check_integer("headway", self.headway, 1)
        check_number("embedding_momentum", self.embedding_momentum, 1.0)
        check_number("state_noise", self.state_noise, 1.0)
        check_flag("continuous_compute", self.continuous_compute)
        if not isinstance(self.latent_processors, (list, tuple)):
            raise TypeError(f"latent_processors={self.latent_processors!r} must be a list.")
        if self.noise_schedule not in SCHEDULES:
            hint = nearest(str(self.noise_schedule), tuple(SCHEDULES))
            raise ValueError(f"noise_schedule={self.noise_schedule!r} is unknown{hint}.")
        self.processors()
        for name in ("inner_recurrence", "max_steps"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        for name in ("num_steps", "max_steps"):
            budget = getattr(self, name)
            if None not in (budget, self.inner_recurrence) and self.inner_recurrence > budget:
                raise ValueError(
                    f"inner_recurrence={self.inner_recurrence} is more than {name}={budget}: a tick would overrun the "
                    f"budget of a token. Use inner_recurrence <= {budget}."
                )

    def processors(self) -> LatentProcessorList:
        """The latent processors these settings name, those of the fields first.

        Raises:
            ValueError: an unknown schedule, name or parameter.
        """
        processors = LatentProcessorList()
        if self.embedding_momentum > 0:
            processors.append(EmbeddingMomentum(self.embedding_momentum))
        if self.continuous_compute:
            processors.append(ContinuousCompute())
        if self.state_noise > 0:
            processors.append(StateNoise(self.state_noise, self.noise_schedule))
        processors += latent_processor(list(self.latent_processors))
        # Two of a class would keep their memories under one key, and draw the same noise.
        classes = [type(processor) for processor in processors if type(processor) in LATENT_PROCESSORS.values()]
        for each in classes:
            if classes.count(each) > 1:
                raise ValueError(
                    f"latent_processors has {each.name!r} twice, counting what embedding_momentum, state_noise and "
                    "continuous_compute stand for: use it once."
                )
        return processors

    def resolve(self, mean_recurrence: int) -> "DiffusionForcingConfig":
        settings = super().resolve(mean_recurrence)
        max_steps = settings.max_steps or settings.num_steps
        inner_recurrence = settings.inner_recurrence
        if inner_recurrence is None and settings.wavefront != "auto":
            inner_recurrence = min(4, settings.num_steps, max_steps)
        return dataclasses.replace(settings, max_steps=max_steps, inner_recurrence=inner_recurrence)

    @property
    def deepest(self) -> int:
        return max(super().deepest, self.max_steps)


@dataclass(kw_only=True)
class SpeculativeWavefrontConfig(SamplerConfig):
    """Settings of `sampler="speculative_wavefront"`: the text of autoregression, drafted at shallow depth.

    The text does not depend on the drafts: only `num_steps`, `state_scale` and `seed` can change it.

    Args:
        draft_depth: recurrences after which a position drafts the next token, and by which a tick takes every
            position deeper; divides `num_steps`. "auto" sees on the prompt how often shallow readouts agree with the
            full depth, measures what widths cost on this machine, and chooses. None is the largest that leaves
            16 positions in the wave, or 1.
        second_draft_depth: recurrences after which a position proposes the next token once more; what stands behind it
            starts anew where the two disagree. A multiple of `draft_depth` below `num_steps`, or 0 for no second
            proposal. None is four times `draft_depth` where that fits.
    """

    sampler: ClassVar[str] = "speculative_wavefront"

    draft_depth: int | str | None = None
    second_draft_depth: int | None = None

    def validate(self) -> None:
        super().validate()
        if self.kv_sharing != "none":
            raise ValueError(
                f"kv_sharing={self.kv_sharing!r} is not possible with sampler={self.sampler!r}, whose positions read "
                "the entries of their own recurrence: leave it out, or use sampler='diffusion_forcing'."
            )
        if isinstance(self.draft_depth, str) and self.draft_depth != "auto":
            raise ValueError(f"draft_depth={self.draft_depth!r} is unknown: use 'auto' or a number of recurrences.")
        if self.draft_depth not in (None, "auto"):
            check_integer("draft_depth", self.draft_depth, 1)
        if self.second_draft_depth is not None:
            check_integer("second_draft_depth", self.second_draft_depth, 0)
        if self.num_steps is not None:
            self._check_depths()

    @property
    def draft_depths(self) -> list[int]:
        """Every draft depth that fits `num_steps` and `second_draft_depth`."""
        second = self.second_draft_depth
        return [
            depth
            for depth in range(1, self.num_steps)
            if self.num_steps % depth == 0 and (not second or (second % depth == 0 and second > depth))
        ]

    def second_depth(self, draft_depth: int | str) -> int:
        """`second_draft_depth`, filled in for a draft depth; 0 where there is none."""
        if self.second_draft_depth is not None or not isinstance(draft_depth, int):
            return self.second_draft_depth or 0
        return 4 * draft_depth if 4 * draft_depth < self.num_steps else 0

    def _check_depths(self) -> None:
        if self.num_steps == 1:
            raise ValueError(
                f"num_steps=1 leaves no recurrence to draft with: use sampler='autoregressive' instead of "
                f"sampler={self.sampler!r}."
            )
        if self.second_draft_depth is not None and self.second_draft_depth >= self.num_steps:
            raise ValueError(
                f"second_draft_depth={self.second_draft_depth} must be less than num_steps={self.num_steps}."
            )
        fitting = self.draft_depths
        if not fitting or (isinstance(self.draft_depth, int) and self.draft_depth not in fitting):
            remedy = f"use {' or '.join(map(str, fitting))}" if fitting else "leave second_draft_depth out"
            raise ValueError(
                f"draft_depth={self.draft_depth!r} does not fit num_steps={self.num_steps} and "
                f"second_draft_depth={self.second_draft_depth}: it must divide both and be less than both; {remedy}."
            )

    def resolve(self, mean_recurrence: int) -> "SpeculativeWavefrontConfig":
        settings = super().resolve(mean_recurrence)
        draft_depth = settings.draft_depth
        if draft_depth is None:
            draft_depth = max(depth for depth in settings.draft_depths if depth <= max(1, settings.num_steps // 16))
        return dataclasses.replace(settings, draft_depth=draft_depth)


SAMPLER_CONFIGS: dict[str, type[SamplerConfig]] = {
    config.sampler: config
    for config in (AutoregressiveConfig, AdaptiveConfig, DiffusionForcingConfig, SpeculativeWavefrontConfig)
}


def sampler_config_class(sampler: str) -> type[SamplerConfig]:
    """The settings class of a sampler's name; ValueError for an unknown name."""
    if not isinstance(sampler, str) or sampler not in SAMPLER_CONFIGS:
        raise ValueError(f"sampler={sampler!r} is unknown{nearest(str(sampler), tuple(SAMPLER_CONFIGS))}.")
    return SAMPLER_CONFIGS[sampler]


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings of several sources, later ones on top. A criterion brings its own threshold: an earlier layer's
    `exit_threshold` was for the criterion it takes the place of."""
    result: dict[str, Any] = {}
    for layer in layers:
        if "exit_criterion" in layer:
            result.pop("exit_threshold", None)
        result |= layer
    return result


def _plain(value: Any) -> Any:
    """A setting as JSON values: hooks by their names, lists copied."""
    if isinstance(value, (ExitCriterion, LatentProcessor)):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
