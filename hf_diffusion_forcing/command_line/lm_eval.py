"""The command `lm-eval`: lm-evaluation-harness, with this package's model families registered."""

import sys

import typer

from .console import fail


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness on recurrent-depth models; all arguments are its own, --help among them."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise fail(
            f'lm-evaluation-harness is not installed ({error}): pip install "hf-diffusion-forcing[lm-eval]"'
        ) from error
    from unittest.mock import patch  # only here: it imports asyncio, which the help of all commands would wait for

    try:
        with patch.object(sys, "argv", ["hf-diffusion-forcing lm-eval", *context.args]):
            cli_evaluate()
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
