"""Rewrites a checkpoint of any family: each tensor once, in one dtype, in safetensors shards.

Checkpoints on the Hub may hold a copy of a tied head, a table of rotations and float32 weights. The rewritten one has
none of these; its config.json has the layout and the tokenizer's special-token ids.
"""

import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from .staging import staged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    checkpoint: str, output: Path, dtype: str = "bfloat16", max_shard_size: str = "5GB", overwrite: bool = False
) -> int:
    """Load a checkpoint and save it, with its tokenizer if it has one. The folder appears complete or not at all.

    Returns:
        The number of parameters.

    Raises:
        ValueError: the dtype is unknown, or the folder may not be replaced.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown: use {', '.join(DTYPES)}.")
    with staged(output, overwrite) as folder:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=DTYPES[dtype])
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        except (OSError, ValueError):
            warnings.warn(f"{checkpoint} has no tokenizer; only the model is written.", stacklevel=2)
        else:
            tokenizer.save_pretrained(folder)
    return model.num_parameters()
