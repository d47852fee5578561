"""Named settings, chosen by measurement (docs/ablations.md); those of "auto" are chosen anew in every call."""

from typing import Any, Literal

from .validation import nearest

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


def preset_sampler(name: str) -> str:
    """A preset's sampler.

    Raises:
        ValueError: an unknown preset.
    """
    if not isinstance(name, str) or name not in PRESET_SAMPLERS:
        raise ValueError(f"sampler_preset={name!r} is unknown{nearest(str(name), tuple(PRESET_SAMPLERS))}.")
    return PRESET_SAMPLERS[name]


def preset(
    name: str,
    sampler: str | Literal[False] | None,
    model_type: str | None = None,
    num_steps: int | None = None,
) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: "quality", "balanced", "fast", "lossless" or "auto".
        sampler: the sampler in use.
        model_type: of the model's config.
        num_steps: the budget of a token, if known. A larger `inner_recurrence` is dropped, so the sampler's default
            applies: presets were measured on deep models, and a family may have shallow ones.

    Raises:
        ValueError: the preset is unknown, or belongs to another sampler.
    """
    own = preset_sampler(name)
    if sampler != own:
        raise ValueError(
            f"sampler_preset={name!r} belongs to sampler={own!r}, not to sampler={sampler!r}: leave out one of "
            f"them, or use sampler={own!r}."
        )
    settings = dict(PRESETS.get(model_type, PRESETS["huginn_raven"])[name])
    if isinstance(num_steps, int) and settings.get("inner_recurrence", 0) > num_steps:
        del settings["inner_recurrence"]
    return settings
