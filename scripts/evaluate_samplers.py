"""Decode a dataset with several samplers: `hf-diffusion-forcing evaluate` as a script.

accelerate launch --num_processes 2 scripts/evaluate_samplers.py --dataset worked --count 20
"""

import typer

from hf_diffusion_forcing.command_line.evaluate import evaluate

if __name__ == "__main__":
    typer.run(evaluate)
