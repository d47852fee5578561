"""Lists the files of a checkpoint's folder in the terminal."""

from pathlib import Path

from rich.console import Console

from .console import say


def list_files(console: Console, folder: Path) -> None:
    """Print the files of a checkpoint's folder with their sizes and the total."""
    from ..hub.push import files_to_push

    sizes = files_to_push(folder)
    for name, size in {**sizes, f"{len(sizes)} files in {folder}": sum(sizes.values())}.items():
        say(console, f"{size:>14,}  {name}")
