"""Sampler settings: one dataclass per sampler, which travels inside `generation_config.json`."""

import dataclasses
import difflib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

CONFIG_NAME = "sampler_config.json"


def _check_integer(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int.")
    if value < at_least:
        raise ValueError(f"{name}={value} must be at least {at_least}.")


def _check_number(name: str, value: Any, at_most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number.")
    if not 0 <= value <= at_most or math.isinf(value):
        bound = "0 or more" if at_most == math.inf else f"between 0 and {at_most:g}"
        raise ValueError(f"{name}={value} must be {bound}.")


@dataclass(kw_only=True)
class SamplerConfig:
    """Settings every sampler has. Each field is also a keyword of `generate()`.

    Args:
        num_steps: recurrences of a token (its budget); the model's `mean_recurrence` when None.
        kv_sharing: "last" (one entry per layer and position, overwritten by later recurrences) or "none" (one entry
            per recurrence).
        state_scale: factor on the random state start; 0.0 starts from zeros.
        seed: an int (row i of the batch uses seed + i) or one int per row; None draws one from torch's generator.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range. Both name the field, the value and what is allowed.
    """

    sampler: ClassVar[str]

    num_steps: int | None = None
    kv_sharing: str = "none"
    state_scale: float = 1.0
    seed: int | list[int] | None = None

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Check every field; called on construction and by `generate()`."""
        if self.num_steps is not None:
            _check_integer("num_steps", self.num_steps, 1)
        if self.kv_sharing not in ("last", "none"):
            raise ValueError(f"kv_sharing={self.kv_sharing!r} is unknown: use 'last' or 'none'.")
        _check_number("state_scale", self.state_scale)
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
        return dataclasses.replace(self, num_steps=self.num_steps or mean_recurrence)

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SamplerConfig":
        """A config from `to_dict()`'s output. An unknown key is a ValueError that names the nearest field."""
        if not isinstance(values, dict):
            raise TypeError(f"{cls.__name__} needs a dict of settings, not {type(values).__name__}.")
        for key in values:
            if key not in cls.fields():
                raise ValueError(f"{cls.__name__} has no setting {key!r}{nearest(key, cls.fields())}.")
        return cls(**values)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `sampler_config.json` into a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"sampler": self.sampler, "sampler_config": self.to_dict()}, indent=2) + "\n"
        partial = folder / f"{CONFIG_NAME}.partial"
        partial.write_text(text)
        partial.replace(folder / CONFIG_NAME)

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
        return config_class.from_dict(stored.get("sampler_config", {}))


@dataclass(kw_only=True)
class AutoregressiveConfig(SamplerConfig):
    """Settings of `sampler="autoregressive"`: one token at a time, `num_steps` recurrences each."""

    sampler: ClassVar[str] = "autoregressive"


@dataclass(kw_only=True)
class DiffusionForcingConfig(SamplerConfig):
    """Settings of `sampler="diffusion_forcing"` (arXiv 2510.14961, Algorithm 1).

    Args:
        wavefront: most positions refined at once.
        headway: new positions a tick may add.
        inner_recurrence: core passes in a tick (r'); when None 4, or the token's budget where that is less.
        exit_threshold: a position has converged when ||s - s_before|| / ||s|| over a tick is below this; 0 never.
        max_steps: recurrences after which the front position freezes anyway; `num_steps` when None.
        embedding_momentum: eta, the share of a position's earlier injected embedding kept in a tick.
        state_noise: beta, the share of fresh noise mixed into states at the start of a tick.
    """

    sampler: ClassVar[str] = "diffusion_forcing"

    kv_sharing: str = "last"
    wavefront: int = 32
    headway: int = 1
    inner_recurrence: int | None = None
    exit_threshold: float = 0.03
    max_steps: int | None = None
    embedding_momentum: float = 0.0
    state_noise: float = 0.0

    def validate(self) -> None:
        super().validate()
        _check_integer("wavefront", self.wavefront, 1)
        _check_integer("headway", self.headway, 1)
        _check_number("exit_threshold", self.exit_threshold)
        _check_number("embedding_momentum", self.embedding_momentum, 1.0)
        _check_number("state_noise", self.state_noise, 1.0)
        for name in ("inner_recurrence", "max_steps"):
            if getattr(self, name) is not None:
                _check_integer(name, getattr(self, name), 1)
        for name in ("num_steps", "max_steps"):
            budget = getattr(self, name)
            if None not in (budget, self.inner_recurrence) and self.inner_recurrence > budget:
                raise ValueError(
                    f"inner_recurrence={self.inner_recurrence} is more than {name}={budget}: a tick would overrun the "
                    f"budget of a token. Use inner_recurrence <= {budget}."
                )

    def resolve(self, mean_recurrence: int) -> "DiffusionForcingConfig":
        settings = super().resolve(mean_recurrence)
        max_steps = settings.max_steps or settings.num_steps
        inner_recurrence = settings.inner_recurrence or min(4, settings.num_steps, max_steps)
        return dataclasses.replace(settings, max_steps=max_steps, inner_recurrence=inner_recurrence)


SAMPLER_CONFIGS: dict[str, type[SamplerConfig]] = {
    config.sampler: config for config in (AutoregressiveConfig, DiffusionForcingConfig)
}


def nearest(word: str, known: tuple[str, ...] | list[str] | set[str]) -> str:
    """A hint to append to an error: the closest known word, or all of them when none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def sampler_config_class(sampler: str) -> type[SamplerConfig]:
    """The settings class of a sampler's name; ValueError for an unknown name."""
    if sampler not in SAMPLER_CONFIGS:
        raise ValueError(f"sampler={sampler!r} is unknown{nearest(str(sampler), tuple(SAMPLER_CONFIGS))}.")
    return SAMPLER_CONFIGS[sampler]
