"""The finished rows in the files of a journal, found by their number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any


class FinishedRows(Mapping[int, dict[str, Any]]):
    """The records of a journal by row. Only their places are kept in memory.

    A row that failed and was decoded later has the later record, whichever file it is in.

    Args:
        paths: the files of the journal.

    Attributes:
        failed: the rows with an error.
    """

    def __init__(self, paths: Iterable[Path]):
        self._files = ExitStack()
        self._places: dict[int, tuple[Any, int]] = {}
        self.failed: set[int] = set()
        for path in paths:
            file, offset = self._files.enter_context(path.open("rb")), 0
            for line in file:
                if line.endswith(b"\n"):  # else cut off by an interruption
                    self._note(json.loads(line), (file, offset))
                offset += len(line)

    def _note(self, record: dict[str, Any], place: tuple[Any, int]) -> None:
        row, has_failed = record["row"], record["error"] is not None
        if row in self._places and has_failed:
            return
        self._places[row] = place
        (self.failed.add if has_failed else self.failed.discard)(row)

    def __getitem__(self, row: int) -> dict[str, Any]:
        file, offset = self._places[row]
        file.seek(offset)
        return json.loads(file.readline())

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> FinishedRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()
