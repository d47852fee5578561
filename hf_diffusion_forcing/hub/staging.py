"""Folders that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def check_destination(out: str | os.PathLike, overwrite: bool = False) -> Path:
    """The absolute path of a folder that may be written.

    Raises:
        ValueError: something there may not be replaced.
    """
    out = Path(out).expanduser().resolve()
    if not out.exists():
        return out
    if not out.is_dir():
        raise ValueError(f"{out} is a file: choose another folder.")
    if Path.cwd().is_relative_to(out):
        raise ValueError(f"{out} contains the current folder and would be replaced: choose another folder.")
    if not any(out.iterdir()):
        return out
    if not overwrite:
        raise ValueError(f"{out} is not empty: choose another folder, or overwrite it (--overwrite).")
    if not (out / "config.json").is_file() or (out / ".git").exists():
        raise ValueError(
            f"{out} is not a checkpoint to overwrite (a folder with a config.json and without .git): choose another."
        )
    return out


@contextmanager
def staged(out: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A new folder next to `out` that replaces it if the block ends without an error, and is removed otherwise.

    Raises:
        ValueError: as `check_destination`.
    """
    out = check_destination(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    stage = out.with_name(f".{out.name}.{uuid4().hex[:8]}")
    stage.mkdir()
    try:
        yield stage
        _replace(out, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(out: Path, stage: Path) -> None:
    """Replace `out`. A folder with files cannot be renamed over, so the old one is moved away, and back on failure."""
    if not out.exists():
        stage.rename(out)
        return
    old = stage.with_name(f"{stage.name}.old")
    out.rename(old)
    try:
        stage.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old)
