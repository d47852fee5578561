"""The command `export`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..settings.presets import PRESET_SAMPLERS
from .checkpoint_files import list_files
from .console import exit_on_error, load
from .sampler_options import SPELLING_HELP, Preset, chosen_sampler

DEFAULT_PRESET = "balanced"


def export(
    choice: Preset,
    model: Annotated[str, typer.Argument(help="A checkpoint folder or Hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    sampler: Annotated[
        str | None,
        typer.Option(help=f"The exported model's sampler, with a preset: {SPELLING_HELP}"),
    ] = None,
    repo_id: Annotated[
        str | None, typer.Option(help="The Hub repository, for the code in the model card; OUT's name by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Write a folder, ready to push, that decodes by diffusion forcing wherever it is loaded."""
    preset, lossless, settings = stored_preset(sampler, choice)
    from ..hub.export import export_checkpoint
    from ..hub.staging import check_destination

    with exit_on_error():
        check_destination(out, overwrite)  # before the weights are loaded
        network, tokenizer = load(model)
        out = export_checkpoint(
            network,
            tokenizer,
            out,
            preset,
            lossless=lossless,
            sampler_config=settings,
            source=model,
            repo_id=repo_id,
            overwrite=overwrite,
        )
        list_files(Console(), out)


def stored_preset(sampler: str | None, choice: Preset) -> tuple[str, bool | None, dict | None]:
    """The preset to store in the exported model, its `lossless`, and the settings that override it.

    Raises:
        typer.Exit: the sampler, preset or a setting is wrong, or no preset is given; the reason is printed.
    """
    if sampler is None and choice.preset is None and choice.lossless is None:
        return DEFAULT_PRESET, None, None
    settings = chosen_sampler(sampler, choice)
    del settings["sampler"]
    with exit_on_error():
        if "sampler_preset" not in settings:
            raise ValueError(
                f"--sampler {sampler} names no preset, but an exported model needs one: add preset={DEFAULT_PRESET} "
                f"or another of {', '.join(PRESET_SAMPLERS)}."
            )
    return settings.pop("sampler_preset"), settings.pop("lossless", None), settings or None
