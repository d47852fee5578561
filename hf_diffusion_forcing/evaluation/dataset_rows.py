"""Rows of a `datasets` dataset from local files, folders or the Hub, with readable errors."""

from __future__ import annotations

from pathlib import Path

from ..settings.validation import nearest

try:
    from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
except ImportError as error:
    raise ImportError(f'Evaluation needs datasets ({error}): pip install "hf-diffusion-forcing[eval]"') from error

FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(name: str, split: str | None = None, config: str | None = None) -> Dataset:
    """The rows of one split.

    Args:
        name: a .json, .jsonl, .csv or .parquet file, a folder, or a name on the Hub.
        split: optional if there is only one.
        config: a dataset's configuration.

    Raises:
        ValueError: nothing can be read there, or the split or configuration is unknown.
    """
    path = Path(name).expanduser()
    try:
        if path.is_dir() and {"state.json", "dataset_dict.json"} & {file.name for file in path.iterdir()}:
            return saved_rows(path, split)
        if path.is_file():
            if path.suffix not in FORMATS:
                raise ValueError(f"{name} has an unknown format: use a file in {', '.join(FORMATS)}.")
            if path.stat().st_size == 0:
                raise ValueError(f"{name} is empty.")
            if config is not None:
                raise ValueError(f"{name} is a file, which has no config={config!r}: leave it out.")
            return load_dataset(FORMATS[path.suffix], data_files=str(path), split=split or "train")
        if path.suffix in FORMATS:
            raise ValueError(f"{name} does not exist.")
        source = str(path) if path.is_dir() else name
        return load_dataset(source, config, split=split or only_split(name, get_dataset_split_names(source, config)))
    except DatasetGenerationError as error:
        raise ValueError(f"{name} could not be read: {error.__cause__ or error}") from error
    except (DatasetNotFoundError, OSError) as error:
        raise ValueError(f"{name} could not be loaded: {error}") from error
    except ValueError as error:
        if "corresponds to no data" in str(error):
            raise ValueError(f"{name} has no rows{f' in split {split!r}' if split else ''}.") from error
        raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from error


def saved_rows(path: Path, split: str | None) -> Dataset:
    """The rows of a folder that `save_to_disk` wrote."""
    saved = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        split = split or only_split(str(path), list(saved))
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}{nearest(split, list(saved))}.")
        return saved[split]
    if split is not None:
        raise ValueError(f"{path} is one dataset without splits: leave split={split!r} out.")
    return saved


def only_split(name: str, splits: list[str]) -> str:
    """The only split of a dataset; ValueError if there are several."""
    if len(splits) != 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}: choose one with split= (--split).")
    return splits[0]
