"""Entries of a cache that gradients flow through."""

import torch
import torch.nn.functional as F

from .placement import Placement


def wants_gradients(*tensors: torch.Tensor) -> bool:
    """Whether autograd records what is done with these tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def with_gradients(stored: torch.Tensor, new: torch.Tensor, at: Placement) -> torch.Tensor:
    """A copy of the entries below the extent, in which the pass's own entries keep their autograd graph.

    The cache itself keeps no graph, and later recurrences overwrite it, which autograd forbids for a tensor it saved.

    Args:
        stored: [rows, kv_heads, capacity + 1, head_dim], the rows' entries of one slot.
        new: [batch, kv_heads, width, head_dim], the keys or the values of the pass.

    Returns:
        [rows, kv_heads, extent, head_dim].
    """
    # One place more, for padding, whose position is -1.
    copy = F.pad(stored[:, :, : at.extent].detach(), (0, 0, 0, 1))
    copy[at.rows, :, at.positions] = new.transpose(1, 2)
    return copy[:, :, : at.extent]
