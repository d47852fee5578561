"""The cache of a recurrent-depth model, and the placement of a pass's positions in it."""

from .attention import RecordedAttention
from .check import check_cache
from .exact import RoundedExtents, exact_kernel
from .grid import Grid
from .no_cache import NoCache
from .placement import Placement, Slots, absolute_positions
from .recurrent_depth_cache import RecurrentDepthCache
from .static import RoundedCapacity

__all__ = [
    "Grid",
    "NoCache",
    "Placement",
    "RecordedAttention",
    "RecurrentDepthCache",
    "RoundedCapacity",
    "RoundedExtents",
    "Slots",
    "absolute_positions",
    "check_cache",
    "exact_kernel",
]
