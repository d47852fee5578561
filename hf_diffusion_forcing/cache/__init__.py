"""Keys and values of a recurrent-depth model, and where the positions of a pass stand in them."""

from .recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache

__all__ = ["NoCache", "Placement", "RecurrentDepthCache"]
