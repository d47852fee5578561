"""The command `widen`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import exit_on_error, load


def widen(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="A Huginn, Raven or Parcae checkpoint; the bundled one by default.")
    ] = None,
    factor: Annotated[int, typer.Option(help="Factor on the width.")] = 8,
    dtype: Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Type of the weights.")] = "bfloat16",
) -> None:
    """Write a wider checkpoint that computes the same function, to time decoding as at realistic model sizes."""
    import torch

    from ..evaluation.widening import widen as make_wider

    network, tokenizer = load(checkpoint)
    with exit_on_error():
        wide = make_wider(network, factor).to(getattr(torch, dtype))
        wide.save_pretrained(output)
        tokenizer.save_pretrained(output)
    count = sum(p.numel() for p in wide.parameters())
    typer.echo(f"Wrote {output}: {count / 1e6:.0f}M parameters in {dtype}.")
