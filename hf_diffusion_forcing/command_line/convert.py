"""The command `convert`."""

from pathlib import Path
from typing import Annotated

import typer

from .console import exit_on_error, fail


def convert(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    dtype: Annotated[str, typer.Option(help="Type of the weights: float32, bfloat16 or float16.")] = "bfloat16",
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a file.")] = "5GB",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Rewrite a checkpoint: each tensor once, in one dtype, in safetensors shards."""
    from safetensors import SafetensorError

    from ..hub.conversion import convert as write_anew

    try:
        with exit_on_error():
            count = write_anew(checkpoint, output, dtype, max_shard_size, overwrite)
    except SafetensorError as error:
        raise fail(f"{checkpoint} could not be loaded: {error}") from error
    typer.echo(f"Wrote {output}: {count / 1e6:.1f}M parameters in {dtype}.")
