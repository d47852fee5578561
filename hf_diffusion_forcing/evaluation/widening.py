"""A checkpoint made k times wider that computes the same function, to time decoding as at realistic model sizes.

Channels, heads and MLP channels are repeated k times, and every linear map is tiled and divided by k: each repeat of an
output sums k equal shares of each input. RMSNorm gives the same result; RoPE and the head size do not change. The
wider model has about k^2 times the weights and converges like the trained original.
"""

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from ..models.widening import Widening


def tile(weight: torch.Tensor, factor: int, outputs: int = 1, inputs: int = 1) -> torch.Tensor:
    """A linear map [out, in] repeated over outputs and inputs, divided by `factor`.

    Args:
        outputs, inputs: the number of parts packed in each dimension (queries, keys and values; gate and up; state and
            embedding); each part is repeated separately.
    """
    rows = torch.cat([part.repeat(factor, 1) for part in weight.chunk(outputs, dim=0)])
    return torch.cat([part.repeat(1, factor) for part in rows.chunk(inputs, dim=1)], dim=1) / factor


def widen_tensor(name: str, weight: torch.Tensor, factor: int, widening: Widening) -> torch.Tensor:
    """The tensor of the same name in the widened model."""
    if name.endswith("qk_bias"):
        return weight.repeat(1, 1, factor, 1)
    if weight.ndim == 1:
        return weight.repeat(factor)
    if name == "lm_head.weight":
        return weight.repeat(1, factor) / factor
    if name.endswith(widening.fixed_inputs):
        return weight.repeat(factor, 1)
    outputs, inputs = (
        next((parts for ending, parts in packed.items() if name.endswith(ending)), 1)
        for packed in (widening.packed_outputs, widening.packed_inputs)
    )
    return tile(weight, factor, outputs, inputs)


def widen(model: PreTrainedModel, factor: int) -> PreTrainedModel:
    """A model `factor` times as wide that gives the same logits.

    Raises:
        ValueError: `factor` < 1, or a family that cannot be widened.
    """
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1.")
    config, widening = model.config, getattr(model, "widening", None)
    if widening is None:
        raise ValueError(f"{type(model).__name__} ({config.model_type}) cannot be widened: pass a Huginn or a Parcae.")
    values = {name: value for name, value in config.to_dict().items() if name not in config.attribute_map}
    for name in widening.sizes:
        values[name] *= factor
    # The head divides by the factor but the embedding does not, so they are no longer tied. The initial state is the
    # original's, repeated; init_values and head_dim do not change.
    values |= {"tie_embeddings": False, "tie_word_embeddings": False}
    with torch.device("meta"):
        wide = type(model)(type(config)(**values)).to(model.dtype)
    embeddings = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Embedding)}
    tensors, state = model.state_dict(), {}
    for name in tqdm(wide.state_dict(), desc="widening"):
        is_embedding = name in embeddings
        tensor = tensors[name]
        state[name] = tensor.repeat(1, factor) if is_embedding else widen_tensor(name, tensor, factor, widening)
    wide.load_state_dict(state, assign=True)
    wide.generation_config = model.generation_config
    if model.decoding_heads is not None:
        wide.decoding_heads = model.decoding_heads.widened(factor)
    return wide.eval()
