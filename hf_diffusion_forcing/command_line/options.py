"""Options that several commands have."""

from typing import Annotated

import typer


def number_or_auto(value: str | int) -> int | str:
    """The value of --wavefront."""
    try:
        return value if value == "auto" else int(value)
    except ValueError:
        raise typer.BadParameter(f"{value!r} is neither a number nor auto.") from None


Wavefront = Annotated[
    str | None, typer.Option(help="Most positions refined at once (32), or auto.", parser=number_or_auto)
]
ExitThreshold = Annotated[
    float | None, typer.Option(help="A state has converged when it moves by less than this share (0.03).")
]
InnerRecurrence = Annotated[int | None, typer.Option(help="Core passes in a tick (4).")]
DraftDepth = Annotated[
    str | None, typer.Option(help="Recurrences of speculative_wavefront's drafts, or auto.", parser=number_or_auto)
]
NumSteps = Annotated[int | None, typer.Option(help="Recurrences of a token; the model's own depth by default.")]
Preset = Annotated[
    str | None, typer.Option(help="quality, balanced, fast or lossless: settings chosen by measurement.")
]
ExitCriterion = Annotated[str | None, typer.Option(help="When a position has converged (latent_difference).")]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens to generate.")]

DEMO_SEED = 7
"""Of the held-out problems that commands take when they are given no prompt."""


def given(**options) -> dict:
    """The options that were given; the others keep the sampler's own defaults."""
    return {name: value for name, value in options.items() if value is not None}
