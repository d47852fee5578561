"""When has a position converged?"""

import torch


def latent_difference(state: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Normalised latent difference ||s - s_before|| / ||s|| in float32 (arXiv 2510.14961, section 4.2).

    Args:
        state, before: [batch, width, channels], the same positions' states a tick apart.

    Returns:
        float32 [batch, width]; NaN where a state is not finite, which compares as not converged.
    """
    state, before = state.float(), before.float()
    return torch.linalg.vector_norm(state - before, dim=-1) / torch.linalg.vector_norm(state, dim=-1)
