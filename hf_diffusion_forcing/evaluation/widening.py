"""A checkpoint made k times wider that computes the same function, to time decoding as at realistic model sizes.

Channels, heads and MLP channels are repeated k times, and every linear map is tiled and divided by k: each repeat of an
output sums k equal shares of each input. RMSNorm gives the same result; RoPE and the head size do not change. The
wider model has about k^2 times the weights and converges like the trained original.
"""

import torch
from tqdm import tqdm

from .. import RavenConfig, RavenForCausalLM


def tile(weight: torch.Tensor, factor: int, outputs: int = 1, inputs: int = 1) -> torch.Tensor:
    """A linear map [out, in] repeated over outputs and inputs, divided by `factor`.

    Args:
        outputs, inputs: the number of parts packed in each dimension (queries, keys and values; gate and up; state and
            embedding); each part is repeated separately.
    """
    rows = torch.cat([part.repeat(factor, 1) for part in weight.chunk(outputs, dim=0)])
    return torch.cat([part.repeat(1, factor) for part in rows.chunk(inputs, dim=1)], dim=1) / factor


def widen_tensor(name: str, weight: torch.Tensor, factor: int) -> torch.Tensor:
    """The tensor of the same name in the widened model."""
    if name.endswith("qk_bias"):
        return weight.repeat(1, 1, factor, 1)
    if weight.ndim == 1:
        return weight.repeat(factor)
    if name.endswith("wte.weight"):
        return weight.repeat(1, factor)
    if name == "lm_head.weight":
        return weight.repeat(1, factor) / factor
    packed_outputs = {"Wqkv.weight": 3, "fc.weight": 2}
    outputs = next((parts for ending, parts in packed_outputs.items() if name.endswith(ending)), 1)
    return tile(weight, factor, outputs, inputs=2 if name.endswith("adapter.weight") else 1)


def widen(model: RavenForCausalLM, factor: int) -> RavenForCausalLM:
    """A model `factor` times as wide that gives the same logits.

    Raises:
        ValueError: `factor` < 1.
    """
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1.")
    values = {name: value for name, value in model.config.to_dict().items() if name not in RavenConfig.attribute_map}
    for name in ("n_embd", "n_heads", "num_key_value_heads", "intermediate_size"):
        values[name] *= factor
    # The head divides by the factor but the embedding does not, so they are no longer tied. The initial state is the
    # original's, repeated; init_values and head_dim do not change.
    values |= {"tie_embeddings": False, "tie_word_embeddings": False}
    with torch.device("meta"):
        wide = RavenForCausalLM(RavenConfig(**values)).to(model.dtype)
    tensors = model.state_dict()
    state = {name: widen_tensor(name, tensors[name], factor) for name in tqdm(wide.state_dict(), desc="widening")}
    wide.load_state_dict(state, assign=True)
    wide.generation_config = model.generation_config
    return wide.eval()
