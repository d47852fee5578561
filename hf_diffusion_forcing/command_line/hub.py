"""The commands `export` and `push`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import fail, load


def export(
    model: Annotated[str, typer.Argument(help="A checkpoint folder or Hub id.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    preset: Annotated[
        str, typer.Option(help="quality, balanced, fast or lossless: how the exported model decodes.")
    ] = "balanced",
    repo_id: Annotated[
        str | None, typer.Option(help="Where it will be pushed, for the code in the model card; OUT's name by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Write a folder that decodes by diffusion forcing wherever it is loaded, ready to push."""
    from ..hub.export import export_checkpoint
    from ..hub.staging import check_destination

    try:
        check_destination(out, overwrite)  # before the weights are loaded
        network, tokenizer = load(model)
        out = export_checkpoint(network, tokenizer, out, preset, source=model, repo_id=repo_id, overwrite=overwrite)
    except (ValueError, TypeError, OSError) as error:
        raise fail(str(error)) from error
    list_files(Console(), out)


def push(
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    private: Annotated[bool, typer.Option("--private", help="The repository must be private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; nothing is sent.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub."""
    from huggingface_hub.utils import validate_repo_id

    from ..hub.push import push_folder

    console = Console()
    try:
        validate_repo_id(repo_id)
        list_files(console, folder)
        if dry_run:
            visibility = "private" if private else "private or public, as the account's settings say"
            message = (
                f"Dry run: nothing was sent. These files would go to {repo_id}; a new repository would be {visibility}."
            )
        else:
            message = f"Pushed to {push_folder(repo_id, folder, private)}"
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(str(error)) from error
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def list_files(console: Console, folder: Path) -> None:
    """Print the files of a checkpoint's folder with their sizes, and the sum."""
    from ..hub.push import files_to_push

    sizes = files_to_push(folder)
    for name, size in {**sizes, f"{len(sizes)} files in {folder}": sum(sizes.values())}.items():
        console.print(f"{size:>14,}  {name}", highlight=False, markup=False, soft_wrap=True)
