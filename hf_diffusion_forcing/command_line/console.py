"""What every command needs: the model it was given, and a way to say what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

ModelArgument = Annotated[
    str | None, typer.Argument(help="A checkpoint folder or Hub id; the bundled checkpoint by default.")
]


def fail(message: str) -> typer.Exit:
    """Say what is wrong on standard error; raise the result to leave with status 2."""
    Console(stderr=True, soft_wrap=True).print(f"error: {message}", style="red", highlight=False, markup=False)
    return typer.Exit(2)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """An error that the user can mend, in what the context does, is said in one line and ends the command."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise fail(str(error)) from error


def say(console: Console, message: str) -> None:
    """Print one line as it is."""
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def load(name: str | None, **kwargs):
    """Model and tokenizer of a checkpoint; only recurrent-depth models are taken.

    Args:
        name: a folder or Hub id; the bundled checkpoint when None.
        kwargs: of `from_pretrained`, for the model.

    Raises:
        typer.Exit: the checkpoint is missing, damaged, or of another kind; the reason is printed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from .. import RecurrentDepthGenerationMixin, bundled_checkpoint

    logging.disable_progress_bar()
    path = name or bundled_checkpoint()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(path, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise fail(f"{path} could not be loaded: {error}") from error
    if not isinstance(model, RecurrentDepthGenerationMixin):
        raise fail(f"{path} is a {model.config.model_type} model; diffusion forcing needs a recurrent-depth one.")
    return model.eval(), tokenizer
