"""`token_type_ids`: the block of a prompt that is read in both directions, and what is refused of it."""

import torch


def refuse_token_types(token_type_ids: torch.Tensor | None) -> None:
    """ValueError where token types would change a pass of a model that has none."""
    if token_type_ids is not None and bool(token_type_ids.any()):
        raise ValueError(
            "token_type_ids has entries other than 0, but the model has no token types: leave it out "
            "(return_token_type_ids=False in the tokenizer)."
        )


def prompt_block(
    token_type_ids: torch.Tensor | None, is_supported: bool, shape: tuple[int, int], seen: int
) -> torch.Tensor | None:
    """The positions that `token_type_ids` makes one bidirectional block.

    Args:
        token_type_ids: int64 [batch, width], 1 for positions of the block and 0 for causal ones; anything at padding.
        is_supported: the model's `has_bidirectional_prompt`.
        shape: batch and width of the inputs.
        seen: columns that the cache holds already.

    Returns:
        bool [batch, width]; None if there is no block.

    Raises:
        ValueError: the model has no such blocks, another shape or other entries, or a prompt that is split over calls.
    """
    if not is_supported:
        return refuse_token_types(token_type_ids)
    # A graph of torch.compile is for every block.
    is_traced = torch.compiler.is_compiling()
    if token_type_ids is None or not (is_traced or bool(token_type_ids.any())):
        return None
    if seen:
        raise ValueError(
            f"token_type_ids marks a bidirectional prompt, but the cache holds {seen} columns already: such a prompt "
            "is read in one piece, because its first tokens see its last ones. Pass all of it at once with a new cache "
            "and leave token_type_ids out afterwards."
        )
    if token_type_ids.shape != shape:
        raise ValueError(
            f"token_type_ids has shape {tuple(token_type_ids.shape)}; for inputs of shape {tuple(shape)} it must have "
            "the same, 1 for tokens of the prompt and 0 for others."
        )
    if not is_traced and bool(((token_type_ids != 0) & (token_type_ids != 1)).any()):
        raise ValueError(
            f"token_type_ids has entries from {int(token_type_ids.min())} to {int(token_type_ids.max())}: use 1 for "
            "tokens of the prompt and 0 for others."
        )
    return token_type_ids == 1
