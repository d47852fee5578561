"""Folders that appear complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def check_destination(out: str | os.PathLike, overwrite: bool = False) -> Path:
    """Where a folder may be written, as an absolute path.

    Raises:
        ValueError: there is something already that may not be replaced.
    """
    out = Path(out).expanduser().resolve()
    if not out.exists():
        return out
    if not out.is_dir():
        raise ValueError(f"{out} is a file: choose another folder.")
    if Path.cwd().is_relative_to(out):
        raise ValueError(f"{out} is replaced as a whole, and the current folder is in it: choose another.")
    if not any(out.iterdir()):
        return out
    if not overwrite:
        raise ValueError(f"{out} is not empty: choose another folder, or overwrite it (--overwrite).")
    if not (out / "config.json").is_file() or (out / ".git").exists():
        raise ValueError(
            f"{out} is not replaced: only a checkpoint is, a folder with a config.json that is no git checkout."
        )
    return out


@contextmanager
def staged(out: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place when the block ends without an error and is gone otherwise.

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
    """A folder with something in it cannot be renamed over: it steps aside first, and back if that fails."""
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
