"""Decodes whole datasets: batch jobs that can be interrupted and resumed."""

try:
    import datasets  # noqa: F401
except ImportError as error:
    raise ImportError(f'Batch jobs need datasets ({error}): pip install "hf-diffusion-forcing[eval]"') from error
