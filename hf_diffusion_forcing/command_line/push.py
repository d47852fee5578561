"""The command `push`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import fail, say


def push(
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="A folder that `export` wrote.")],
    private: Annotated[bool, typer.Option("--private", help="Require a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub."""
    from huggingface_hub.utils import validate_repo_id

    from ..hub.push import push_folder
    from .checkpoint_files import list_files

    console = Console()
    try:
        validate_repo_id(repo_id)
        list_files(console, folder)
        if dry_run:
            visibility = "private" if private else "private or public, depending on the account's settings"
            message = (
                f"Dry run: nothing was sent. These files would go to {repo_id}; a new repository would be {visibility}."
            )
        else:
            message = f"Pushed to {push_folder(repo_id, folder, private)}"
    except (ValueError, OSError, RuntimeError) as error:
        raise fail(str(error)) from error
    say(console, message)
