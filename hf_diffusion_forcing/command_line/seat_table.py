"""The table of `serve --plan`."""

from rich.console import Console
from rich.table import Table

from .console import exit_on_error, fail

POSITIONS = (1024, 4096)
"""Lengths of a seat, prompt and answer together."""


def print_seats(name: str | None, dtype: str) -> None:
    """Print what a seat takes for every way to decode, from the checkpoint's config alone.

    Args:
        name: a folder or Hub id; the bundled checkpoint when None.
        dtype: of the weights, as in `--dtype`.

    Raises:
        typer.Exit: the config is missing, or of another kind; the reason is printed.
    """
    import torch
    from transformers import AutoConfig

    from .. import bundled_checkpoint
    from ..serving.plan import GIB, seat_sizes

    path = name or bundled_checkpoint()
    with exit_on_error():
        config = AutoConfig.from_pretrained(path)
        kind = config.dtype if dtype == "auto" else getattr(torch, dtype, None)
        kind = torch.float32 if dtype == "auto" and kind is None else kind
        if not isinstance(kind, torch.dtype):
            raise ValueError(f"--dtype {dtype} is unknown: pass float32, bfloat16 or float16.")
        try:
            sizes = seat_sizes(config, kind)
        except AttributeError as error:
            raise fail(f"{path} is a {config.model_type} model: pass a recurrent-depth model.") from error
    table = Table(title=f"{name or 'bundled'} in {str(kind).removeprefix('torch.')}: seats a GiB")
    for column in ("way to decode", "kv_sharing", "entries a position", "bytes a position"):
        table.add_column(column)
    for positions in POSITIONS:
        table.add_column(f"of {positions}", justify="right")
    for size in sizes:
        seats = [f"{size.seats(GIB, positions):,}" for positions in POSITIONS]
        table.add_row(size.name, str(size.kv_sharing), f"{size.entries}", f"{size.bytes_per_position:,}", *seats)
    Console().print(table)
