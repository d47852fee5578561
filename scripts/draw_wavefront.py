"""Draw how the wavefront moves through one held-out problem, as docs/images/wavefront.svg.

    python scripts/draw_wavefront.py

The bundled checkpoint answers the problem by diffusion forcing; every tick is recorded. The same options give the same
picture, so it can be made again whenever the checkpoint or the sampler changes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import matplotlib
import torch
import typer
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation.diffusion_forcing import DiffusionForcing
from hf_diffusion_forcing.generation.mixin import WAVEFRONT_SAMPLERS
from hf_diffusion_forcing.generation.wavefront import Wavefront

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "wavefront.svg"
CELL = 0.16
"""Inches a cell is wide and high."""


@dataclass(frozen=True)
class Tick:
    """What one tick did to the wave.

    Attributes:
        front: the first position of the wave.
        steps: per position of the wave, its recurrences after the tick, counted since its input token last changed.
        frozen: how many positions froze, counted from the front.
    """

    front: int
    steps: list[int]
    frozen: int


class RecordingDiffusionForcing(DiffusionForcing):
    """Diffusion forcing of one row that appends a `Tick` to `ticks` whenever the wave has moved on."""

    def __init__(self, ticks: list[Tick], *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ticks = ticks

    def _freeze(self, wave: Wavefront, row: int, *refined) -> None:
        # The wave counts a tick's recurrences only as it moves on, and forgets what it dropped: look before and after.
        front, steps = wave.fronts[row], [count + self.config.inner_recurrence for count in wave.steps[row]]
        super()._freeze(wave, row, *refined)
        self.ticks.append(Tick(front, steps, wave.fronts[row] - front))


def record(model, input_ids: torch.Tensor, **settings) -> tuple[list[Tick], list[int]]:
    """Decode one prompt, int64 [1, length]: what every tick did, and the ids of the whole text."""
    ticks: list[Tick] = []
    # generate() goes on preparing everything; only the class it runs is exchanged, for this call.
    with patch.dict(WAVEFRONT_SAMPLERS, diffusion_forcing=partial(RecordingDiffusionForcing, ticks)):
        sequences = model.generate(input_ids, sampler="diffusion_forcing", **settings)
    return ticks, sequences[0].tolist()


def token_label(tokenizer, token: int) -> str:
    """A token's text without the space around it; white space alone is written as its escape."""
    text = tokenizer.decode([token])
    return text.strip() or repr(text)[1:-1]


def draw(ticks: list[Tick], labels: list[str], title: str) -> Figure:
    """The picture: ticks downwards, positions to the right, a cell for every position in a tick's wave.

    Args:
        ticks: what every tick did; at least one.
        labels: the final token of each position, from position 0; positions past the end have none.
        title: above the picture.
    """
    cells, counts, frozen = [], [], []
    for number, tick in enumerate(ticks, start=1):
        for position, count in enumerate(tick.steps, start=tick.front):
            cells.append(Rectangle((position - 0.5, number - 0.5), 1, 1))
            counts.append(count)
        frozen += [(position, number) for position in range(tick.front, tick.front + tick.frozen)]

    first, end = ticks[0].front, max(tick.front + len(tick.steps) for tick in ticks)
    figure = Figure(figsize=(CELL * (end - first) + 2.5, CELL * len(ticks) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    waves = PatchCollection(cells, cmap="YlGnBu", edgecolor="white", linewidth=0.4)
    waves.set_array(counts)
    waves.set_clim(0, max(counts))
    axes.add_collection(waves)
    axes.scatter(*zip(*frozen, strict=True), s=10, color="crimson", label="freezes", zorder=2)

    axes.set_xlim(first - 0.5, end - 0.5)
    axes.set_ylim(len(ticks) + 0.5, 0.5)
    shown = (labels + [""] * end)[first:end]
    # A dollar sign in a token is no formula.
    axes.set_xticks(range(first, end), shown, rotation=90, fontsize=6, parse_math=False)
    axes.set_xlabel("position (its final token; blank past the end of the text)")
    axes.set_ylabel("tick")
    axes.set_title(title, fontsize=9)
    axes.legend(loc="upper right", frameon=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    label = "recurrences since the input token last changed"
    figure.colorbar(waves, ax=axes, shrink=0.6, label=label, ticks=MaxNLocator(integer=True))
    return figure


def main(
    output: Annotated[Path, typer.Option(help="The file to write; its suffix says the format.")] = PICTURE,
    seed: Annotated[int, typer.Option(help="Seed of the problem and of the latent states.")] = 7,
    steps: Annotated[int, typer.Option(help="Operations in the word problem (1 to 6).")] = 2,
    wavefront: Annotated[int, typer.Option(help="Most positions refined at once.")] = 32,
    exit_threshold: Annotated[
        float, typer.Option(help="A state has converged when it moves by less than this.")
    ] = 0.03,
    inner_recurrence: Annotated[int, typer.Option(help="Core passes in a tick.")] = 4,
):
    """Decode one held-out word problem by diffusion forcing and draw what every tick did."""
    console = Console()
    path = bundled_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    problem = next(problems(seed, held_out=True, kind="worked", lengths=(steps, steps)))
    input_ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
    settings = {"wavefront": wavefront, "exit_threshold": exit_threshold, "inner_recurrence": inner_recurrence}

    ticks, ids = record(model, input_ids, seed=seed, **settings)
    if not ticks:
        raise typer.BadParameter("the answer is a single token, so there is no wave to draw: choose another --seed.")

    labels = [token_label(tokenizer, token) for token in ids]
    figure = draw(ticks, labels, ", ".join(f"{name}={value}" for name, value in settings.items()))
    output.parent.mkdir(parents=True, exist_ok=True)
    # Salt and date are fixed, so drawing the same picture again changes no file.
    with matplotlib.rc_context({"svg.hashsalt": "wavefront"}):
        figure.savefig(output, metadata={"Date": None} if output.suffix == ".svg" else None)

    console.print(tokenizer.decode(ids, skip_special_tokens=True), highlight=False, markup=False)
    console.print(f"{len(ids) - input_ids.shape[1]} tokens in {len(ticks)} ticks: wrote {output}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
