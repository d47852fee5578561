"""The command line, in this process."""

from typer.testing import CliRunner

from hf_diffusion_forcing.command_line.app import app


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))
