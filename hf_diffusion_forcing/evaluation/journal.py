"""What has been measured so far, on disk: a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from ..files import write_file

RUN = "run.json"
RESULTS = ("results.json", "results.csv", "results.md", "samples.jsonl")


def check_writable(folder: str | os.PathLike) -> Path:
    """A folder that is there or can be made, as an absolute path; nothing is left behind.

    Raises:
        ValueError: nothing can be written there.
    """
    folder = Path(folder).expanduser().resolve()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return folder
    except OSError as error:
        raise ValueError(f"{folder} cannot be written: {error.strerror}. Choose another output folder.") from error


class Journal:
    """The records of a run in a folder, one file for every process, one line for every record.

    Args:
        folder: of the run; made if it is missing.
        identity: what the records depend on, as JSON values. A run goes on only with the same.
        overwrite: forget a run that is there.

    Raises:
        ValueError: the folder has something else in it, or a run with another identity.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any], overwrite: bool = False):
        self.folder, self.identity = check_writable(folder), json.loads(json.dumps(identity))
        self.file: BinaryIO | None = None
        self.overwrite = overwrite
        if not self.folder.is_dir() or not {path.name for path in self.folder.iterdir()} - {f"{RUN}.partial"}:
            return
        if not (self.folder / RUN).is_file():
            raise ValueError(f"{self.folder} holds something that is no evaluation: choose another folder.")
        if overwrite:
            return
        there = json.loads((self.folder / RUN).read_text())
        if changes := differences(there, self.identity):
            raise ValueError(
                f"{self.folder} has a run with {changes[0]}{f' (and {len(changes) - 1} more)' if changes[1:] else ''}. "
                "Go on with the same arguments, choose another folder, or start anew with overwrite (--overwrite)."
            )

    def begin(self) -> None:
        """Make the folder ready; one process does, after all have looked at it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            for path in (*map(self.folder.joinpath, RESULTS), *self.files()):
                path.unlink(missing_ok=True)
        if self.overwrite or not (self.folder / RUN).exists():
            write_file(self.folder / RUN, json.dumps(self.identity, indent=1) + "\n")

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("journal-*.jsonl"))

    def read(self) -> list[dict[str, Any]]:
        """All whole records of all processes; a line that was torn when the run was stopped is left out."""
        records = []
        for path in self.files():
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    records.append(json.loads(line))
        return records

    def open(self, process: int) -> None:
        """Begin to write as one of the processes, after a torn line has been cut off."""
        path = self.folder / f"journal-{process}.jsonl"
        self.file = path.open("ab")
        written = path.read_bytes()
        self.file.truncate(written.rfind(b"\n") + 1)

    def append(self, record: dict[str, Any]) -> None:
        """Write a record; it is on disk when this returns. A process that has not opened the journal writes none."""
        if self.file is None:
            return
        self.file.write(json.dumps(record).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What is not the same in two values of JSON, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            change
            for key in keys
            for change in differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [f"{name}={there!r}, where this one has {here!r}"]
