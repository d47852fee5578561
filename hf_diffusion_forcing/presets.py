"""Named settings, chosen by measurement (docs/ablations.md)."""

from typing import Any

from .validation import nearest

PRESET_SAMPLER = "diffusion_forcing"
"""The sampler that presets are for."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "huginn_raven": {
        "quality": {"wavefront": 32, "inner_recurrence": 4, "exit_threshold": 0.03},
        "balanced": {"wavefront": 32, "inner_recurrence": 2, "exit_threshold": 0.03},
        "fast": {"wavefront": 32, "inner_recurrence": 1, "exit_threshold": 0.03},
    },
}
"""By model type, settings of `sampler="diffusion_forcing"`; a family without its own has Huginn's."""


def preset(name: str, sampler: str = PRESET_SAMPLER, model_type: str | None = None) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: "quality", "balanced" or "fast".
        sampler: whose settings; only `"diffusion_forcing"` has presets.
        model_type: of the model's config.

    Raises:
        ValueError: an unknown preset, or another sampler.
    """
    if sampler != PRESET_SAMPLER:
        raise ValueError(
            f"sampler_preset={name!r} is of sampler={PRESET_SAMPLER!r}; {sampler!r} has no presets: leave it out."
        )
    known = PRESETS.get(model_type, PRESETS["huginn_raven"])
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"sampler_preset={name!r} is unknown{nearest(str(name), tuple(known))}.")
    return dict(known[name])
