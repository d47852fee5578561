"""The settings all samplers share; each sampler's own are in a file next to this one."""

import copy
import dataclasses
import inspect
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..files import write_file
from ..version import __version__
from .presets import preset
from .validation import check_integer, check_number, nearest

CONFIG_NAME = "sampler_config.json"

SAMPLER_CONFIGS: dict[str, type["SamplerConfig"]] = {}
"""The settings class of every sampler, by the sampler's name."""


@dataclass(kw_only=True)
class SamplerConfig:
    """Settings of every sampler. Each field is also a keyword of `generate()`.

    Args:
        num_steps: recurrences per token (its budget); the model's `mean_recurrence` when None.
        kv_sharing: "last" (one entry per layer and position, overwritten by later recurrences), "none" (one entry
            per recurrence) or a number of entries n: recurrence k writes and reads entry k modulo n.
        state_scale: factor on the random initial state; 0.0 starts from zeros.
        seed: an int (row i of the batch uses seed + i) or one int per row; None draws one from torch's generator.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: a value is out of range. Both name the field, the value and what is allowed.
    """

    sampler: ClassVar[str]

    num_steps: int | None = None
    kv_sharing: str | int = "none"
    state_scale: float = 1.0
    seed: int | list[int] | None = None

    def __post_init__(self):
        self.validate()
        self.check_depths()

    def validate(self) -> None:
        """Check each field on its own; called on construction."""
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

    def check_depths(self) -> None:
        """Check that the given depths fit each other; called on construction and by `resolve`.

        Raises:
            ValueError: two of them do not.
        """

    def resolve(self, mean_recurrence: int) -> "SamplerConfig":
        """The settings with every depth filled in.

        Args:
            mean_recurrence: the model's depth, the default of `num_steps`.

        Raises:
            ValueError: the depths do not fit each other.
        """
        # Construction checked the fields; only the filled-in depths are new.
        settings = copy.copy(self)
        settings.fill_depths(mean_recurrence)
        settings.check_depths()
        return settings

    def fill_depths(self, mean_recurrence: int) -> None:
        """Replace depths that are None with numbers."""
        self.num_steps = self.num_steps or mean_recurrence
        if self.kv_sharing == 1:
            self.kv_sharing = "last"

    @property
    def deepest(self) -> int:
        """The most recurrences a position may get (resolved settings): the entries of `kv_sharing="none"`."""
        return self.num_steps

    @property
    def prompt_steps(self) -> int:
        """Recurrences of the prompt (resolved settings)."""
        return self.num_steps

    @property
    def widest(self) -> int:
        """The most positions of a row in one pass of the core (resolved settings)."""
        return 1

    @property
    def sees_chunks(self) -> bool:
        """Whether it matters where the chunks of a prompt begin: a chunk sees the last recurrence of those before."""
        return self.kv_sharing != "none"

    @property
    def is_exact(self) -> bool:
        """Whether a position's numbers must not depend on those beside it."""
        return False

    @property
    def is_compiled(self) -> bool:
        """Whether the core passes of ticks run in few shapes, by compiled code."""
        return False

    @property
    def needs_ticks(self) -> bool:
        """Whether transformers' own loop cannot decode by these settings."""
        return self.is_exact or self.is_compiled

    @property
    def follows_prompt(self) -> bool:
        """Whether a setting is chosen while the prompt is read ("auto"), so that rows cannot share it."""
        return False

    @classmethod
    def fields(cls) -> tuple[str, ...]:
        """Names of the settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    def update(self, **settings) -> dict[str, Any]:
        """Change settings; returns those this sampler does not have.

        Raises:
            TypeError, ValueError: as on construction; then nothing changes.
        """
        known = {name: value for name, value in settings.items() if name in self.fields()}
        dataclasses.replace(self, **known)
        for name, value in known.items():
            setattr(self, name, value)
        return {name: value for name, value in settings.items() if name not in known}

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values.

        Raises:
            TypeError: the class of a criterion or processor is not registered.
        """
        return {name: plain(getattr(self, name)) for name in self.fields()}

    def to_diff_dict(self) -> dict[str, Any]:
        """The entries of `to_dict()` that differ from the defaults."""
        default = type(self)().to_dict()
        return {name: value for name, value in self.to_dict().items() if value != default[name]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text `save_pretrained` writes: the sampler's name, its settings (with `use_diff` only those that differ
        from the defaults) and the package version."""
        settings = self.to_diff_dict() if use_diff else self.to_dict()
        stored = {"sampler": self.sampler, "sampler_config": settings, "hf_diffusion_forcing_version": __version__}
        return json.dumps(stored, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SamplerConfig":
        """A config from `to_dict()`'s output. An unknown key raises a ValueError that suggests the nearest field."""
        if not isinstance(values, dict):
            raise TypeError(f"{cls.__name__} needs a dict of settings, not {type(values).__name__}.")
        for key in values:
            if key not in cls.fields():
                raise ValueError(
                    f"{cls.__name__} has no setting {key!r}{nearest(str(key), cls.fields())}. "
                    f"(This is version {__version__}; a newer version may have written the file.)"
                )
        return cls(**values)

    @classmethod
    def from_preset(
        cls, name: str, model_type: str | None = None, lossless: bool | None = None, **settings
    ) -> "SamplerConfig":
        """A preset's settings, overridden by `settings`.

        Args:
            name: "quality", "balanced", "fast", "lossless" or "auto".
            model_type: selects a family's own presets, if it has any.
            lossless: whether "auto" chooses among lossless settings only.

        Raises:
            ValueError: the preset is unknown, or belongs to another sampler.
        """
        chosen = preset(name, cls.sampler, model_type, settings.get("num_steps"), lossless)
        return cls.from_dict(merged(chosen, settings))

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write `sampler_config.json` into a folder."""
        text = self.to_json_string()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / CONFIG_NAME, text)

    @classmethod
    def from_pretrained(cls, save_directory: str | os.PathLike) -> "SamplerConfig":
        """Read `sampler_config.json` from a folder; `SamplerConfig` itself reads any sampler's.

        Raises:
            ValueError: the file is for another sampler, or holds unknown settings.
        """
        stored = json.loads((Path(save_directory) / CONFIG_NAME).read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"{CONFIG_NAME} in {save_directory} holds no settings: it must be a JSON object.")
        config_class = sampler_config_class(stored.get("sampler")) if cls is SamplerConfig else cls
        if stored.get("sampler") != config_class.sampler:
            raise ValueError(f"{CONFIG_NAME} in {save_directory} is not for sampler={config_class.sampler!r}.")
        try:
            return config_class.from_dict(stored.get("sampler_config", {}))
        except (TypeError, ValueError) as error:
            writer = stored.get("hf_diffusion_forcing_version", "an unknown version")
            raise type(error)(f"{CONFIG_NAME} in {save_directory}, written by {writer}: {error}") from error


def register_sampler_config(config_class: type[SamplerConfig]) -> type[SamplerConfig]:
    """Register a sampler's settings class under its name; returns the class.

    Raises:
        ValueError: the name belongs to another class.
    """
    known = SAMPLER_CONFIGS.setdefault(config_class.sampler, config_class)
    if (known.__module__, known.__qualname__) != (config_class.__module__, config_class.__qualname__):
        raise ValueError(f"sampler={config_class.sampler!r} belongs to {known.__qualname__}: use another name.")
    SAMPLER_CONFIGS[config_class.sampler] = config_class
    return config_class


def sampler_config_class(sampler: str) -> type[SamplerConfig]:
    """A sampler's settings class; ValueError if the sampler is unknown."""
    if not isinstance(sampler, str) or sampler not in SAMPLER_CONFIGS:
        raise ValueError(f"sampler={sampler!r} is unknown{nearest(str(sampler), tuple(SAMPLER_CONFIGS))}.")
    return SAMPLER_CONFIGS[sampler]


def sampler_keywords() -> set[str]:
    """The fields of all samplers: the keywords `generate()` takes besides transformers' own."""
    return {name for config_class in SAMPLER_CONFIGS.values() for name in config_class.fields()}


def field_help(config_class: type, name: str) -> str:
    """One line on a setting: its entry under `Args:` in the docstring of its class.

    Empty if docstrings are stripped (`python -OO`).
    """
    for owner in config_class.__mro__:
        text = inspect.cleandoc(vars(owner).get("__doc__") or "")
        entry = re.search(rf"^    {re.escape(name)}: (.*(?:\n     +.*)*)", text, re.MULTILINE)
        if entry is not None:
            help_text = " ".join(entry[1].split())
            return help_text[:1].upper() + help_text[1:]
    return ""


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merge settings; later layers override earlier ones. A layer with an `exit_criterion` also drops the earlier
    `exit_threshold`, which was meant for the criterion it replaces."""
    result: dict[str, Any] = {}
    for layer in layers:
        if "exit_criterion" in layer:
            result.pop("exit_threshold", None)
        result |= layer
    return result


def plain(value: Any) -> Any:
    """A setting as JSON values: hooks by name, lists copied.

    Raises:
        TypeError: a hook's class is not registered.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.to_dict() if hasattr(value, "to_dict") else value
