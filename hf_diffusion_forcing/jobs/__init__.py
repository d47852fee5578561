"""Decodes whole datasets: batch jobs that can be interrupted and resumed."""

try:
    from datasets import disable_progress_bars
except ImportError as error:
    raise ImportError(f'Batch jobs need datasets ({error}): pip install "hf-diffusion-forcing[eval]"') from error

__all__ = ["disable_progress_bars"]
