"""A line of JSON for each HTTP request."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

NAME = f"{__package__}.gate"


class JsonLine(logging.Formatter):
    """A record as one line of JSON: its time, level, message and fields."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(line | getattr(record, "fields", {}))


def write_json_lines(level: str) -> None:
    """Write the requests to standard output, if the level is "info" or "debug"."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLine())
    logger = logging.getLogger(NAME)
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())
