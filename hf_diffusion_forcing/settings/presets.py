"""Named settings, chosen by measurement (docs/ablations.md); those of "auto" are chosen anew in every call."""

from typing import Any, Literal

from .validation import check_flag, nearest

PRESET_SAMPLERS = {
    "quality": "diffusion_forcing",
    "balanced": "diffusion_forcing",
    "fast": "diffusion_forcing",
    "lossless": "speculative_wavefront",
    "auto": "diffusion_forcing",
}
"""Each preset's sampler."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "huginn_raven": {
        "quality": {"wavefront": 32, "inner_recurrence": 4, "exit_threshold": 0.03},
        "balanced": {"wavefront": 32, "inner_recurrence": 2, "exit_threshold": 0.03, "adaptive_prefill": True},
        "fast": {"wavefront": 32, "inner_recurrence": 1, "exit_threshold": 0.03, "adaptive_prefill": True},
        "lossless": {},
        "auto": {"wavefront": "auto", "exit_threshold": 0.03, "adaptive_prefill": True},
    },
}
"""Settings of each preset by model type; a family without presets of its own uses Huginn's."""

LOSSLESS_AUTO: dict[str, Any] = {"draft_depth": "auto", "draft_tokens": "auto"}
"""Settings of the preset "auto" with `lossless=True`, for all families."""


def preset_sampler(name: str, lossless: bool | None = None) -> str:
    """A preset's sampler.

    Args:
        lossless: whether "auto" chooses among lossless settings only; None is False.

    Raises:
        TypeError: `lossless` is no bool.
        ValueError: an unknown preset, or one without a lossless kind.
    """
    if not isinstance(name, str) or name not in PRESET_SAMPLERS:
        raise ValueError(f"sampler_preset={name!r} is unknown{nearest(str(name), tuple(PRESET_SAMPLERS))}.")
    check_lossless(lossless, name)
    if lossless:
        return PRESET_SAMPLERS["lossless"]
    return PRESET_SAMPLERS[name]


def check_lossless(lossless: bool | None, name: str | None) -> None:
    """Refuse `lossless=True` with another preset than "auto".

    Raises:
        TypeError: it is no bool.
        ValueError: it does not fit the preset; None is no preset.
    """
    if lossless is not None:
        check_flag("lossless", lossless)
    if lossless and name != "auto":
        raise ValueError(
            f"lossless=True is a choice of sampler_preset='auto', not of sampler_preset={name!r}: pass "
            "sampler_preset='auto' with it, or leave it out and pass sampler_preset='lossless'."
        )


def preset(
    name: str,
    sampler: str | Literal[False] | None,
    model_type: str | None = None,
    num_steps: int | None = None,
    lossless: bool | None = None,
) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: "quality", "balanced", "fast", "lossless" or "auto".
        sampler: the sampler in use.
        model_type: of the model's config.
        num_steps: the budget of a token, if known. A larger `inner_recurrence` is dropped, so the sampler's default
            applies: presets were measured on deep models, and a family may have shallow ones.
        lossless: as in `preset_sampler`.

    Raises:
        TypeError: `lossless` is no bool.
        ValueError: the preset is unknown, or belongs to another sampler.
    """
    own = preset_sampler(name, lossless)
    if sampler != own:
        called = f"sampler_preset={name!r}" + (" with lossless=True" if lossless else "")
        raise ValueError(
            f"{called} belongs to sampler={own!r}, not to sampler={sampler!r}: leave out one of them, or use "
            f"sampler={own!r}."
        )
    if lossless:
        return dict(LOSSLESS_AUTO)
    settings = dict(PRESETS.get(model_type, PRESETS["huginn_raven"])[name])
    if isinstance(num_steps, int) and settings.get("inner_recurrence", 0) > num_steps:
        del settings["inner_recurrence"]
    return settings
