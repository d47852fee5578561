"""The options that choose a command's sampler: `--sampler NAME:setting=value,...`, and one option per setting.

Names, help texts and defaults come from the samplers' dataclasses, so a new setting becomes an option automatically.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..settings.presets import PRESET_SAMPLERS, check_lossless, preset_sampler
from ..settings.sampler_config import SAMPLER_CONFIGS, SamplerConfig, field_help
from ..settings.spelling import check_sampler, parse_value, spelled_sampler
from .console import exit_on_error

SPELLING_HELP = (
    "NAME or NAME:setting=value,setting=value, as in diffusion_forcing:preset=fast,wavefront=16. Names: "
    f"{', '.join(SAMPLER_CONFIGS)}."
)
DEFAULT_SAMPLER = "diffusion_forcing"
LOSSLESS_SAMPLER = preset_sampler("lossless")
COMPARED_SAMPLERS = ("autoregressive", DEFAULT_SAMPLER, LOSSLESS_SAMPLER)
"""The samplers to compare by default; the first is the baseline."""

COMMON = ("seed",)
"""Settings without a generated option: each command defines its own --seed."""

Sampler = Annotated[
    str | None, typer.Option(help=f"{SPELLING_HELP} Default: the sampler of --preset, or {DEFAULT_SAMPLER}.")
]
Samplers = Annotated[list[str], typer.Option(help=f"{SPELLING_HELP} Repeatable; the first is the baseline.")]


def owners(name: str) -> list[type[SamplerConfig]]:
    """The settings classes with this field."""
    return [config_class for config_class in SAMPLER_CONFIGS.values() if name in config_class.fields()]


def setting_names() -> list[str]:
    """All settings with an option, shared ones first."""
    names = dict.fromkeys(name for config_class in SAMPLER_CONFIGS.values() for name in config_class.fields())
    return [name for name in names if name not in COMMON]


def option_of(name: str) -> Any:
    """The annotated type of a setting's option."""
    having = owners(name)
    defaults = {config_class.sampler: field_default(config_class, name) for config_class in having}
    (first, *others) = dict.fromkeys(map(repr, defaults.values()))
    if others:
        said = ", ".join(f"{default} with {sampler}" for sampler, default in defaults.items())
    else:
        said = "" if first in ("None", "[]") else str(defaults[having[0].sampler])
    text = field_help(having[0], name).replace("`", "")
    text = text.removesuffix(".") + "." + (f" Default: {said}." if said else "")
    every = len(having) == len(SAMPLER_CONFIGS)
    panel = "Settings of every sampler" if every else f"Settings of {', '.join(c.sampler for c in having)}"
    shown = {"help": escape(text), "rich_help_panel": panel}
    if isinstance(defaults[having[0].sampler], bool):
        return Annotated[bool | None, typer.Option(**shown)]

    def read(value: str) -> Any:
        try:
            return parse_value(f"--{name.replace('_', '-')}", value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return Annotated[str | None, typer.Option(parser=read, metavar="VALUE", **shown)]


def field_default(config_class: type[SamplerConfig], name: str) -> Any:
    """The default of a setting."""
    (found,) = (each for each in fields(config_class) if each.name == name)
    return found.default if found.default_factory is MISSING else found.default_factory()


@dataclass
class Preset:
    """The option of the presets."""

    preset: Annotated[
        str | None, typer.Option(help=f"{', '.join(PRESET_SAMPLERS)}: settings chosen by measurement.")
    ] = None
    lossless: Annotated[
        bool | None,
        typer.Option(help="With --preset auto: choose among lossless settings, whose text is autoregression's."),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The given options as keywords of `generate()`; the others keep the sampler's defaults."""
        values = asdict(self)
        values["sampler_preset"] = values.pop("preset")
        return {name: value for name, value in values.items() if value is not None}


PlainSettings = make_dataclass(
    "PlainSettings", [(name, option_of(name), field(default=None)) for name in setting_names()], bases=(Preset,)
)
"""An option for each setting of any sampler."""


def with_settings(sampler: str, plain: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `generate()` from a sampler's spelling and settings given as options.

    Raises:
        ValueError: the spelling is wrong, or has a setting that is also given as an option.
    """
    kwargs = spelled_sampler(sampler)
    for name in plain:
        if name in kwargs:
            option = "--" + name.removeprefix("sampler_").replace("_", "-")
            raise ValueError(f"{name} is given twice, in --sampler {sampler} and by {option}: leave out one of them.")
    return kwargs | plain


def chosen_sampler(sampler: str | None, plain: Preset, default: str = DEFAULT_SAMPLER) -> dict[str, Any]:
    """Keywords of `generate()` for a command with one sampler, checked without a model.

    Args:
        sampler: the value of --sampler.
        plain: the other options.
        default: the sampler if neither --sampler nor --preset names one.

    Raises:
        typer.Exit: the sampler, preset or a setting is wrong; the reason is printed.
    """
    given = plain.given
    with exit_on_error():
        if sampler is None:
            preset, lossless = given.get("sampler_preset"), given.get("lossless")
            check_lossless(lossless, preset)
            sampler = default if preset is None else preset_sampler(preset, lossless)
        kwargs = with_settings(sampler, given)
        check_options(given, [kwargs["sampler"]])
        check_sampler(kwargs)
    return kwargs


def check_options(given: dict[str, Any], samplers: list[str]) -> None:
    """ValueError for an option that is not a setting of any of the samplers."""
    for name, value in given.items():
        having = [config_class.sampler for config_class in owners(name)]
        if having and not set(having) & set(samplers) and set(samplers) <= set(SAMPLER_CONFIGS):
            raise ValueError(
                f"{name}={value!r} is not a setting of {' or '.join(samplers)}, but of {' and '.join(having)}: leave "
                "it out, or choose another sampler."
            )


def compared_samplers(samplers: list[str], plain: Preset) -> dict[str, dict[str, Any]]:
    """Keywords of `generate()` by spelling, for a command with several samplers.

    A setting given as an option applies to every sampler that has it, a preset to its own sampler.

    Raises:
        typer.Exit: a sampler, the preset or a setting is wrong; the reason is printed.
    """
    given = plain.given
    with exit_on_error():
        names = [spelled_sampler(text)["sampler"] for text in samplers]
        check_options(given, names)
        preset, lossless = given.get("sampler_preset"), given.get("lossless")
        check_lossless(lossless, preset)
        owner = None if preset is None else preset_sampler(preset, lossless)
        if owner is not None and owner not in names:
            raise ValueError(
                f"--preset {preset} belongs to {owner}, which is not compared: leave it out, or add --sampler {owner}."
            )
        chosen = {}
        for text, name in zip(samplers, names, strict=True):
            own = {setting: value for setting, value in given.items() if name in {c.sampler for c in owners(setting)}}
            if owner == name:
                own |= {each: given[each] for each in ("sampler_preset", "lossless") if each in given}
            kwargs = with_settings(text, own)
            check_sampler(kwargs)
            chosen[text] = kwargs
        if len(chosen) < len(samplers):
            raise ValueError(f"A sampler is given twice: {', '.join(samplers)}. Leave out one of them.")
    return chosen


def without_undraftable(samplers: tuple[str, ...], plain: Preset) -> tuple[str, ...]:
    """With `num_steps=1`, leave out the samplers that draft: one recurrence per token leaves none for drafts."""
    if plain.given.get("num_steps") != 1:
        return samplers
    return tuple(name for name in samplers if "draft_depth" not in SAMPLER_CONFIGS[name].fields())
