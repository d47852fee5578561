"""Figures of a `Trace` and of a `RecurrenceInsight`, and a page about a call. matplotlib is imported on first use."""

from importlib import import_module

_PLACES = {
    "plot_convergence": "convergence_figures",
    "plot_insight": "insight_figure",
    "plot_latents": "latents_figure",
    "plot_recurrences": "convergence_figures",
    "plot_wavefront": "wavefront_figure",
    "principal_components": "latents",
}

__all__ = list(_PLACES)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)
