"""Write a checkpoint of any family anew: each tensor once, in one dtype, in safetensors shards.

Files of the Hub hold a copy of a tied head, a table of rotations and float32 weights; what this writes has none of
these, says its layout in config.json and has the tokenizer's special-token ids.

    python scripts/convert_checkpoint.py tomg-group-umd/huginn-0125 huginn-bf16
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_diffusion_forcing  # noqa: F401 (registers the families)
from hf_diffusion_forcing.command_line.console import fail
from hf_diffusion_forcing.hub.staging import staged

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    checkpoint: str, output: Path, dtype: str = "bfloat16", max_shard_size: str = "5GB", overwrite: bool = False
) -> int:
    """Load a checkpoint, single or sharded, and save it with its tokenizer, if it has one. The folder appears whole.

    Returns:
        The number of parameters.

    Raises:
        ValueError: an unknown dtype, or a folder that may not be replaced.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown: use {', '.join(DTYPES)}.")
    with staged(output, overwrite) as folder:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=DTYPES[dtype])
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        except (OSError, ValueError):
            typer.echo(f"{checkpoint} has no tokenizer; only the model is written.", err=True)
        else:
            tokenizer.save_pretrained(folder)
    return model.num_parameters()


def main(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[str, typer.Option(help="Of the weights written: float32, bfloat16 or float16.")] = "bfloat16",
    max_shard_size: Annotated[str, typer.Option(help="Of a file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
):
    """Write a checkpoint anew: each tensor once, in one dtype, in safetensors shards."""
    try:
        count = convert(checkpoint, output, dtype, max_shard_size, overwrite)
    except (OSError, ValueError, SafetensorError) as error:
        raise fail(str(error)) from error
    typer.echo(f"Wrote {output}: {count / 1e6:.1f}M parameters in {dtype}.")


if __name__ == "__main__":
    typer.run(main)
