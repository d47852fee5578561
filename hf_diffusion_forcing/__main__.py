"""`python -m hf_diffusion_forcing` is the command `hf-diffusion-forcing`."""

from .command_line.app import app

app(prog_name="hf-diffusion-forcing")
