"""Attention of a pass's positions to the cache: the kernels that a placement can use."""

import torch
import torch.nn.functional as F

FEW = 16
"""With up to this many queries (and fewer than thousands of keys) two plain matrix products are faster on a CPU than
torch's kernel (docs/benchmarks/profile.md)."""

CHUNK = 256
"""Queries per kernel call when many attend causally to earlier keys and to each other: torch's kernel has no such mask,
and a full one over the whole text is slow."""


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, is_causal: bool = False
) -> torch.Tensor:
    """Scaled dot-product attention, [batch, heads, width, head_dim].

    Args:
        query: [batch, heads, width, head_dim].
        key, value: [batch, kv_heads, keys, head_dim].
        mask: [batch or 1, 1, width, keys], added to the scores or, if it is bool (with one query only), True where the
            query sees a key; None if every query sees every key.
        is_causal: the queries are the last `width` positions of the keys, and each sees those up to its own; then
            `mask` is None.
    """
    batch, heads, width, head_dim = query.shape
    grouped, keys = heads != key.shape[1], key.shape[2]
    if is_causal and width < keys:
        parts, end = [], keys - width
        for part in query.split(CHUNK, dim=2):
            end += part.shape[2]
            # Only the last columns of a chunk's mask are not zero.
            hidden = query.new_full((part.shape[2], part.shape[2]), float("-inf")).triu(1)
            hidden = F.pad(hidden, (end - part.shape[2], 0))[None, None]
            parts.append(attention(part, key[:, :, :end], value[:, :, :end], hidden))
        return torch.cat(parts, dim=2)
    few = mask is not None and query.device.type == "cpu"
    # A graph of torch.compile or torch.export is for every width.
    few = few and not torch.compiler.is_compiling() and 1 < width <= FEW
    # A product over a batch would first copy keys that are strided views, as those of several slots are.
    few = few and (batch == 1 or key.stride(0) == key.shape[1] * key.stride(1))
    if few and not grouped and not torch.is_grad_enabled():
        if batch > 1:
            scores = (query * head_dim**-0.5 @ key.transpose(2, 3)).add_(mask)
            return scores.softmax(-1) @ value
        scores = torch.baddbmm(mask[0], query[0], key[0].transpose(1, 2), alpha=head_dim**-0.5)
        return torch.bmm(scores.softmax(-1), value[0])[None]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, enable_gqa=grouped)


def eager_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, is_causal: bool = False
) -> torch.Tensor:
    """`attention` by plain matrix products, for `attn_implementation="eager"`; arguments as there."""
    return _attend(query, key, value, mask, is_causal)[0]


class RecordedAttention:
    """`eager_attention` that keeps what it computes, for `output_attentions`.

    Attributes:
        probabilities: of each call, [batch, heads, width, keys] in the query's dtype.
    """

    def __init__(self):
        self.probabilities: list[torch.Tensor] = []

    def __call__(self, query, key, value, mask, is_causal=False) -> torch.Tensor:
        y, probabilities = _attend(query, key, value, mask, is_causal)
        self.probabilities.append(probabilities)
        return y


def _attend(query, key, value, mask, is_causal) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of every query, and its attention probabilities (a softmax in float32, as in transformers)."""
    groups, width, keys = query.shape[1] // key.shape[1], query.shape[2], key.shape[2]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    if is_causal:
        mask = scores.new_full((width, keys), float("-inf")).triu(keys - width + 1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    probabilities = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return probabilities @ value, probabilities
