"""Shared by all commands: loading the model and printing errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

ModelArgument = Annotated[
    str | None, typer.Argument(help="A checkpoint folder or Hub id; the bundled checkpoint by default.")
]


def fail(message: str) -> typer.Exit:
    """Print an error to standard error; raise the returned exception to exit with status 2."""
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", highlight=False, markup=False)
    return typer.Exit(2)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Turn an error that the user can fix into one line of output and exit status 2."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise fail(str(error)) from error


def say(console: Console, message: str) -> None:
    """Print one line without markup."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def load(name: str | None, dtype: str | None = None, **kwargs):
    """Load the model and tokenizer of a recurrent-depth checkpoint.

    Args:
        name: a folder or Hub id; the bundled checkpoint when None.
        dtype: type of the weights; "auto" for the saved one, or float32 on a CPU that is slow in the saved one (a line
            on standard error then says so); None for the saved one.
        kwargs: other keywords of the model's `from_pretrained`.

    Raises:
        typer.Exit: the checkpoint is missing, damaged or of another kind; the reason is printed.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from .. import RecurrentDepthGenerationMixin, bundled_checkpoint

    logging.disable_progress_bar()
    path = name or bundled_checkpoint()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        if dtype == "auto":
            dtype = fast_dtype(AutoConfig.from_pretrained(path), kwargs.get("device_map"))
        model = AutoModelForCausalLM.from_pretrained(path, **kwargs | ({} if dtype is None else {"dtype": dtype}))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise fail(f"{path} could not be loaded: {error}") from error
    if not isinstance(model, RecurrentDepthGenerationMixin):
        raise fail(f"{path} is a {model.config.model_type} model: pass a recurrent-depth model.")
    return model.eval(), tokenizer


def fast_dtype(config: Any, device: Any) -> str:
    """The dtype for `--dtype auto`; says on standard error if it is not the saved one.

    Args:
        config: of the model.
        device: the device map; None for the CPU.
    """
    import torch

    from ..precision import is_slow

    on_cpu = device is None or str(device) == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    if config.dtype is None or not on_cpu or not is_slow(config.dtype, "cpu"):
        return "auto"
    saved = str(config.dtype).removeprefix("torch.")
    message = f"This CPU is slow in {saved}, so the weights are loaded in float32 (--dtype {saved} keeps them)."
    say(Console(stderr=True), message)
    return "float32"
