"""`position_ids` of `forward()`: where packed sequences begin."""

from typing import Any

import torch

FLASH_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""What collators for packed batches add for kernels of their own. They say again what position_ids say."""


def agree(position_ids: torch.Tensor, positions: torch.Tensor) -> bool:
    """Whether `position_ids` [batch or 1, width] are `positions` [batch, width] wherever these are not padding (-1)."""
    return bool(((position_ids == positions) | (positions < 0)).all())


def check_shape(position_ids: torch.Tensor, shape: tuple[int, int]) -> None:
    """ValueError unless the shape is [batch, width] or [1, width]."""
    if tuple(position_ids.shape) not in (shape, (1, shape[1])):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}; for inputs of shape {shape} it must be {shape} or "
            f"{(1, shape[1])}."
        )


def packed_sequences(
    position_ids: torch.Tensor, positions: torch.Tensor, seen: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The sequences of packed rows. A row's next sequence begins where its position_ids restart at 0.

    Args:
        position_ids: int64 [batch or 1, width]; anything at padding.
        positions: int64 [batch, width], counted from the mask alone; -1 is padding.
        seen: cached columns.

    Returns:
        Positions int64 [batch, width], -1 at padding, and each position's sequence, int64 [batch, width] from 1 on;
        None if no row has more than one sequence.

    Raises:
        ValueError: another shape, or positions that neither go on by one nor restart at 0, or that restart behind
            cached columns.
    """
    check_shape(position_ids, tuple(positions.shape))
    given = position_ids.to(positions).expand_as(positions)
    if agree(given, positions):
        return None
    is_real = positions >= 0
    begins = is_real & (given == 0)
    goes_on = begins.clone()
    goes_on[:, 1:] |= (given[:, 1:] == given[:, :-1] + 1) & is_real[:, :-1]
    wrong = is_real & ((given != positions) if seen else ~goes_on)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"position_ids holds {int(given[row, column])} at row {row}, column {column}: positions count up from each "
            "row's first real token, and may restart at 0 for the next sequence of a packed row, without a cache. "
            "Leave position_ids out to have them counted from attention_mask."
        )
    return given.masked_fill(~is_real, -1), begins.cumsum(-1).clamp_min(1)


def check_flash_arguments(others: dict[str, Any], position_ids: torch.Tensor | None, width: int) -> None:
    """ValueError unless the arguments of `FLASH_ARGUMENTS` that were passed say what position_ids [1, width] say."""
    given = {name: others[name] for name in FLASH_ARGUMENTS if others.get(name) is not None}
    if not given:
        return
    if position_ids is None or len(position_ids) != 1:
        raise ValueError(
            f"{next(iter(given))} needs position_ids of one row, which say where sequences begin: pass them."
        )
    begins = position_ids[0] == 0
    ends = torch.cat((begins.nonzero()[:, 0], begins.new_full((1,), width, dtype=torch.int64)))
    longest = int(ends.diff().max()) if len(ends) > 1 else width
    expected = {"cu": ends.tolist(), "max": longest, "seq": (begins.cumsum(0) - 1)[None].tolist()}
    for name, value in given.items():
        value = value.tolist() if isinstance(value, torch.Tensor) else value
        right = expected[name.partition("_")[0]]
        if value != right:
            raise ValueError(f"{name} does not agree with position_ids, which give {right}: leave it out.")
