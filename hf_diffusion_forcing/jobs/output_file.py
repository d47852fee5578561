"""The file that a batch job writes: the dataset's rows in order, with the outputs as further columns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from filelock import FileLock, Timeout

from ..evaluation.journal import check_writable
from ..files import whole_file

ROWS_AT_A_TIME = 1000
JOURNAL_SUFFIX = ".journal"
LOCK_SUFFIX = ".lock"
WRITTEN_AS = {"text": "", "tokens": "_tokens", "finish_reason": "_finish_reason", "error": "_error"}
"""What a column is called, after the name of the text's own column, by its key in the records."""


@dataclass(frozen=True)
class OutputFile:
    """A .jsonl or .parquet file beside the folder of its job's journal.

    Attributes:
        path: of the file.
        column: name of the column for the texts; those of the other new columns begin with it.
        has_seeds: whether each row has its seed.
        has_logprobs: whether each row has the logarithms of its tokens' probabilities.
    """

    path: Path
    column: str
    has_seeds: bool = False
    has_logprobs: bool = False

    @property
    def journal(self) -> Path:
        """The folder of the journal."""
        return self.path.with_name(self.path.name + JOURNAL_SUFFIX)

    @property
    def columns(self) -> dict[str, str]:
        """The names of the new columns by their keys in the records."""
        keys = WRITTEN_AS | ({"seed": "_seed"} if self.has_seeds else {})
        keys |= {"logprobs": "_logprobs"} if self.has_logprobs else {}
        return {key: self.column + suffix for key, suffix in keys.items()}

    @classmethod
    def of(cls, path: str | os.PathLike, column: str, has_seeds: bool, has_logprobs: bool) -> OutputFile:
        """An output that can be written.

        Raises:
            ValueError: it has another suffix, is a folder, or is in one that does not exist or cannot be written.
        """
        path = Path(path).expanduser().resolve()
        if path.suffix not in WRITERS:
            raise ValueError(f"output={str(path)!r} has no known format: end it in {' or '.join(WRITERS)}.")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file in it.")
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
        check_writable(path.parent)
        if not column:
            raise ValueError("output_column is empty: give the column of the texts a name.")
        return cls(path, column, has_seeds, has_logprobs)

    def check(self, rows: Dataset, overwrite: bool) -> None:
        """Refuse to replace columns or files, and rows that the format cannot hold.

        Raises:
            ValueError: says which.
        """
        if taken := [name for name in self.columns.values() if name in rows.column_names]:
            raise ValueError(
                f"The dataset has a column {taken[0]!r} already: choose another output_column (--output-column)."
            )
        if self.path.suffix == ".jsonl":
            for field in rows.features.arrow_schema:
                if holds_bytes(field.type):
                    raise ValueError(f"Column {field.name!r} holds bytes, which JSON cannot: write a .parquet file.")
        if self.path.exists() and not self.journal.exists() and not overwrite:
            raise ValueError(
                f"{self.path} exists, and not from a job that could be resumed: choose another output, or replace it "
                "with overwrite (--overwrite)."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other jobs from this output. The system frees the lock when the process ends, however it ends.

        Raises:
            ValueError: another job has it, or files cannot be locked there.
        """
        lock = FileLock(self.path.with_name(self.path.name + LOCK_SUFFIX), timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            raise ValueError(
                f"Another job is writing {self.path}: wait until it has ended, end it, or choose another output."
            ) from error
        except (OSError, NotImplementedError) as error:
            raise ValueError(f"{self.path} cannot be locked ({error}): choose an output in another folder.") from error
        try:
            yield
        finally:
            lock.release()

    def write(self, rows: Dataset, records: Mapping[int, dict[str, Any]]) -> None:
        """Write the file as a whole.

        Args:
            rows: the dataset.
            records: of every row by its number, see `RowDecoder`.
        """
        new = {"tokens": Value("int64"), "seed": Value("int64"), "logprobs": List(Value("float64"))}
        added = {name: new.get(key, Value("string")) for key, name in self.columns.items()}
        schema = Features(rows.features | added).arrow_schema
        tables = rows.with_format("arrow")
        with whole_file(self.path) as partial, WRITERS[self.path.suffix](partial, schema) as write:
            for first in range(0, len(rows), ROWS_AT_A_TIME):
                table = tables[first : first + ROWS_AT_A_TIME]
                found = [records[number] for number in range(first, first + len(table))]
                for key, name in self.columns.items():
                    values = pa.array([record[key] for record in found], schema.field(name).type)
                    table = table.append_column(schema.field(name), values)
                write(table.replace_schema_metadata(schema.metadata))


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type have bytes anywhere in them."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


@contextmanager
def jsonl_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes tables as lines of JSON; dates and decimals as text."""
    with path.open("w", encoding="utf-8") as file:

        def write(table: pa.Table) -> None:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in table.to_pylist())

        yield write


@contextmanager
def parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Writes tables as row groups of a Parquet file."""
    with pq.ParquetWriter(path, schema) as writer:
        yield writer.write_table


WRITERS = {".jsonl": jsonl_writer, ".parquet": parquet_writer}
