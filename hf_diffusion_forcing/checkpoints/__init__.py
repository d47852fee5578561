"""The trained checkpoint that ships with the package."""

from pathlib import Path


def bundled_checkpoint() -> str:
    """Folder of the bundled checkpoint, ready for `from_pretrained` (Huginn layout, with tokenizer)."""
    return str(Path(__file__).parent / "bundled")
