"""Figures of a `Trace`, and a page about it. matplotlib is imported on first use."""

__all__ = ["plot_convergence", "plot_latents", "plot_recurrences", "plot_wavefront", "principal_components"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import figures, latents

    return getattr(latents if name == "principal_components" else figures, name)
