"""The progress bar of a batch job."""

from __future__ import annotations

import time
from typing import Any

from tqdm import tqdm


class Progress(tqdm):
    """A bar of rows, with the rate of tokens and the number of failed rows beside the time that is left.

    Args:
        total: rows.
        finished: those of them that an earlier run has finished.
        is_shown: None shows it on a terminal only.
        name: of the rows.
    """

    def __init__(self, total: int, finished: int, is_shown: bool | None, name: str):
        hidden = None if is_shown is None else not is_shown
        super().__init__(total=total, initial=finished, desc=name, unit="row", disable=hidden)
        self.began, self.tokens, self.failed = time.perf_counter(), 0, 0

    def count(self, records: list[dict[str, Any]]) -> None:
        """Count the records of rows that have ended."""
        self.tokens += sum(record["tokens"] for record in records)
        self.failed += sum(record["error"] is not None for record in records)
        rate = f"{self.tokens / (time.perf_counter() - self.began):.1f} tokens/s"
        if not self.disable:
            self.set_postfix_str(rate + (f", {self.failed} failed" if self.failed else ""), refresh=False)
        self.update(len(records))
