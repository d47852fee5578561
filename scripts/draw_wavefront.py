"""Draw the pictures of the documentation that show the decoding of one held-out problem.

    python scripts/draw_wavefront.py

The bundled checkpoint answers the problem by diffusion forcing and records a trace. The script writes
docs/images/wavefront.svg (recurrences), exit_values.svg, convergence.svg, recurrences.svg and latents.svg. The same
options give the same pictures. Run it again when the checkpoint or the sampler changes.
"""

from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.visualization import plot_convergence, plot_latents, plot_recurrences, plot_wavefront

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"


def main(
    folder: Annotated[Path, typer.Option(help="Folder for the pictures.")] = IMAGES,
    seed: Annotated[int, typer.Option(help="Seed of the problem and of the latent states.")] = 7,
    steps: Annotated[int, typer.Option(help="Operations in the word problem (1 to 6).")] = 2,
    wavefront: Annotated[int, typer.Option(help="Maximum number of positions refined at once.")] = 32,
    exit_threshold: Annotated[float, typer.Option(help="A state that moves by less than this has converged.")] = 0.03,
    inner_recurrence: Annotated[int, typer.Option(help="Core passes per tick.")] = 1,
):
    """Decode one held-out word problem by diffusion forcing and draw every tick."""
    console = Console()
    path = bundled_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    problem = next(problems(seed, held_out=True, kind="worked", lengths=(steps, steps)))
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    settings = {"wavefront": wavefront, "exit_threshold": exit_threshold, "inner_recurrence": inner_recurrence}

    output = model.generate(
        **inputs,
        sampler="diffusion_forcing",
        seed=seed,
        **settings,
        return_trace="latents",
        return_dict_in_generate=True,
    )
    trace = output.trace
    if not trace.waves:
        raise typer.BadParameter("The answer is a single token, so there is no wave to draw: choose another --seed.")
    labels = [tokenizer.decode([token]) for token in trace.new_tokens()]
    pictures = {
        "wavefront": plot_wavefront(trace, color_by="recurrences", labels=labels),
        "exit_values": plot_wavefront(trace, labels=labels),
        "convergence": plot_convergence(trace),
        "recurrences": plot_recurrences(trace),
        "latents": plot_latents(trace),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        # Fixed salt and date: drawing the same picture again changes no file.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})

    console.print(tokenizer.decode(output.sequences[0], skip_special_tokens=True), highlight=False, markup=False)
    ticks = f"{output.stats.decoded_tokens} tokens in {output.stats.ticks} ticks"
    console.print(f"{ticks}, {settings}: wrote {', '.join(pictures)} to {folder}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
