"""The code blocks of a page."""

import re

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A block's language and its text."""
