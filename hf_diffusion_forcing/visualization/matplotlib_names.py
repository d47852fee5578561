"""matplotlib's names, with an error that names the extra if it is missing.

Figures are standalone `Figure` objects, without a window or global state.
"""

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(f'Figures need matplotlib ({error}): pip install "hf-diffusion-forcing[plot]"') from error

__all__ = [
    "Axes",
    "Figure",
    "LineCollection",
    "LogNorm",
    "MaxNLocator",
    "Normalize",
    "PatchCollection",
    "Rectangle",
    "ScalarMappable",
    "colormaps",
]
