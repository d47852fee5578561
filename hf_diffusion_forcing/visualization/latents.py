"""Latent states in few dimensions."""

import torch


def principal_components(states: torch.Tensor, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Project states on the directions in which they vary most.

    Args:
        states: float [points, channels]; at least `count` of each.
        count: directions to keep.

    Returns:
        float32 [points, count], relative to the mean, and float32 [count], each direction's share of the variance in
        descending order; zeros if all states are equal. Each direction's largest channel is positive, so that the same
        states always give the same picture.

    Raises:
        ValueError: there are too few points or channels, or a state is not finite.
    """
    if states.ndim != 2 or min(states.shape) < count:
        raise ValueError(f"states has shape {tuple(states.shape)}: {count} components need [points, channels] of that.")
    if not bool(states.isfinite().all()):
        raise ValueError("states has NaN or infinite values: leave out the positions that have them.")
    centred = states.double() - states.double().mean(0)
    _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    shares = (lengths**2 / (lengths**2).sum().clamp_min(1e-30))[:count]
    return (centred @ (directions * signs).T).float(), shares.float()
