"""A wave in which every position stands at another depth: the older, the deeper."""

import torch


class DepthWave:
    """Rows of positions in a pipeline. Column c has had c x `stride` recurrences when a tick begins, in every row.

    A position enters in column 0 and moves on by one column a tick, so rows of a batch may stand at different places
    and still share each column's recurrence. Within a row later positions stand in lower columns; a column may be
    empty.

    Attributes:
        fronts: per row, its first position.
        tokens: per row, the ids at its positions; the first is committed, the others are drafts. Empty: ended.
        columns: per row, the columns of its positions, falling.
        proposals: per row and position, what it proposed as next token, by the depth it was read at.
        states, embeddings: [batch, columns, channels] as the last tick left them, or None before the first tick.
        held: the columns these stood in.
    """

    def __init__(self, fronts: list[int], tokens: list[list[int]], device: torch.device):
        self.fronts, self.tokens, self.device = fronts, tokens, device
        self.columns: list[list[int]] = [[0] * len(row) for row in tokens]
        self.proposals: list[list[dict[int, int]]] = [[{} for _ in row] for row in tokens]
        self.states: torch.Tensor | None = None
        self.embeddings: torch.Tensor | None = None
        self.held = range(0)

    @property
    def extent(self) -> int:
        """A bound above every position."""
        return max(front + len(row) for front, row in zip(self.fronts, self.tokens, strict=True) if row)

    @property
    def span(self) -> range:
        """The columns from the first to the last that is occupied in some row."""
        return range(min(c[-1] for c in self.columns if c), max(c[0] for c in self.columns if c) + 1)

    def grid(self, span: range) -> torch.Tensor:
        """Token ids and positions (-1 in empty columns) of some columns, int64 [2, batch, columns]."""
        ids = [[0] * len(span) for _ in self.tokens]
        positions = [[-1] * len(span) for _ in self.tokens]
        for row, (front, columns) in enumerate(zip(self.fronts, self.columns, strict=True)):
            for place, column in enumerate(columns):
                if column in span:
                    ids[row][column - span.start] = self.tokens[row][place]
                    positions[row][column - span.start] = front + place
        return torch.tensor((ids, positions), device=self.device)

    def carry(self, span: range, *fresh: torch.Tensor | None) -> list[torch.Tensor]:
        """States and embeddings in the columns `span`, one column on from where the last tick left them.

        Args:
            fresh: states and embeddings of column 0, [batch, 1, channels]; None when it is not in the span.
        """
        carried = []
        for old, new in zip((self.states, self.embeddings), fresh, strict=True):
            parts = [] if new is None else [new if old is None else new.to(old.device)]
            first = max(self.held.start + 1, span.start)
            if old is not None and first < span.stop:
                empty = first - span.start - len(parts)
                parts.append(old.new_zeros(len(old), empty, old.shape[-1]))
                parts.append(old[:, first - 1 - self.held.start : span.stop - 1 - self.held.start])
            carried.append(torch.cat(parts, dim=1))
        return carried

    def place_of(self, row: int, column: int) -> int | None:
        """Which of a row's positions, counted from its front, stands in a column; None when none does."""
        columns = self.columns[row]
        return columns.index(column) if column in columns else None

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        for name in ("fronts", "tokens", "columns", "proposals"):
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in rows])
        for name in ("states", "embeddings"):
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor[torch.tensor(rows, device=tensor.device)])

    # --- between two ticks, row by row ---

    def drop_front(self, row: int) -> None:
        """The front is committed and done; the position after it is the front."""
        for values in (self.tokens, self.columns, self.proposals):
            del values[row][0]
        self.fronts[row] += 1

    def cut(self, row: int, place: int) -> list[int]:
        """Drop a row's positions from `place` on; returns their columns."""
        dropped = self.columns[row][place:]
        for values in (self.tokens, self.columns, self.proposals):
            del values[row][place:]
        return dropped

    def enter(self, row: int, token: int) -> None:
        """A new position behind a row's last one. `move()` brings it to column 0."""
        self.tokens[row].append(token)
        self.columns[row].append(-1)
        self.proposals[row].append({})

    def move(self) -> None:
        """Everyone goes on by one column."""
        self.columns = [[column + 1 for column in columns] for columns in self.columns]
