"""Saves results during a run, so that an interrupted run can be resumed."""

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
    """The absolute path of a folder that exists or can be created; leaves no files.

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
        folder: folder of the run; created if necessary.
        identity: everything the records depend on, as JSON values. Only a run with an equal identity is resumed.
        overwrite: discard an earlier run.

    Raises:
        ValueError: the folder holds something else, or a run with another identity.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict[str, Any], overwrite: bool = False):
        self.folder, self.identity = check_writable(folder), json.loads(json.dumps(identity))
        self.file: BinaryIO | None = None
        self.overwrite = overwrite
        if not self.folder.is_dir() or all(path.match(f"{RUN}*.partial") for path in self.folder.iterdir()):
            return
        if not (self.folder / RUN).is_file():
            raise ValueError(f"{self.folder} holds files that are no record of a run: choose another output.")
        if overwrite:
            return
        there = json.loads((self.folder / RUN).read_text())
        if changes := differences(there, self.identity):
            raise ValueError(
                f"{self.folder} has a run with {changes[0]}{f' (and {len(changes) - 1} more)' if changes[1:] else ''}. "
                "Resume it with the same arguments, choose another output, or discard it with overwrite (--overwrite)."
            )

    def begin(self) -> None:
        """Prepare the folder; called by one process after all have checked it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.overwrite:
            for path in (*map(self.folder.joinpath, RESULTS), *self.files()):
                path.unlink(missing_ok=True)
        if self.overwrite or not (self.folder / RUN).exists():
            write_file(self.folder / RUN, json.dumps(self.identity, indent=1) + "\n")

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("journal-*.jsonl"))

    def read(self) -> list[dict[str, Any]]:
        """All complete records of all processes; ignores a line cut off by an interruption."""
        records = []
        for path in self.files():
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    records.append(json.loads(line))
        return records

    def open(self, process: int) -> None:
        """Start to write for one process, after removing an incomplete last line."""
        path = self.folder / f"journal-{process}.jsonl"
        self.file = path.open("ab")
        written = path.read_bytes()
        self.file.truncate(written.rfind(b"\n") + 1)

    def append(self, *records: dict[str, Any]) -> None:
        """Write records to disk before returning. Does nothing in a process that has not opened the journal."""
        if self.file is None:
            return
        self.file.write(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """The differences between two JSON values, in words."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*there, *(key for key in here if key not in there)]
        return [
            change
            for key in keys
            for change in differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if there == here else [f"{name}={there!r}, where this one has {here!r}"]
