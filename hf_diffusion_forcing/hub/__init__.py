"""Export checkpoints as folders, and push folders to the Hugging Face Hub."""

from .export import export_checkpoint
from .push import files_to_push, push_folder

__all__ = ["export_checkpoint", "files_to_push", "push_folder"]
