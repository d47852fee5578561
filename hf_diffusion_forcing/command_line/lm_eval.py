"""The command `lm-eval`: lm-evaluation-harness, with this package's model families registered."""

import sys

import typer

from .console import fail


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness on recurrent-depth models; it gets all arguments, including --help."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise fail(
            f'lm-evaluation-harness is not installed ({error}): pip install "hf-diffusion-forcing[lm-eval]"'
        ) from error
    from unittest.mock import (
        patch,
    )  # not at the top: it imports asyncio, which would slow down the help of every command

    try:
        with patch.object(sys, "argv", ["hf-diffusion-forcing lm-eval", *context.args]):
            cli_evaluate()
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
