"""Checkpoints as repositories of the Hugging Face Hub: exported as a folder, pushed as a folder."""

from .export import export_checkpoint
from .push import files_to_push, push_folder

__all__ = ["export_checkpoint", "files_to_push", "push_folder"]
