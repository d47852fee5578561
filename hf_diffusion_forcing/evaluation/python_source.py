"""Natural text available on every machine: the running interpreter's standard library (PSF licence)."""

import hashlib
import random
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
"""Folders without ordinary source: installed packages, tests and tables."""
HELD_OUT_SHARE = 16
"""One file in this many is held out."""


def source_files(held_out: bool = False) -> list[Path]:
    """The sorted files of one split; a file's split depends only on its path.

    Args:
        held_out: whether to return the held-out split.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = []
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        digest = hashlib.sha256(relative.as_posix().encode()).digest()
        if not LEFT_OUT & set(relative.parts) and (digest[0] % HELD_OUT_SHARE == 0) == held_out:
            files.append(path)
    return files


def read_source(path: Path) -> str:
    """A file's text, decoded as the interpreter would."""
    with tokenize.open(path) as file:
        return file.read()


def source_starts(at_least: int, seed: int = 0, held_out: bool = True) -> Iterator[str]:
    """An endless stream of texts that begin at the start of a line of a random file, the same for the same seed.

    Args:
        at_least: shortest file to use, in characters; texts start in its first half.
        seed: seed of the stream.
        held_out: whether to draw from the held-out split.

    Raises:
        ValueError: no file is long enough.
    """
    rng = random.Random(seed)
    texts = [text for text in map(read_source, source_files(held_out)) if len(text) > at_least]
    if not texts:
        raise ValueError(f"No file of the standard library has {at_least} characters: ask for shorter prompts.")
    while True:
        text = rng.choice(texts)
        yield text[text.find("\n", rng.randrange(len(text) // 2)) + 1 :]


def source_prompts(
    tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int = 0, held_out: bool = True
) -> list[torch.Tensor]:
    """Prompts that begin at the start of a line of a random file, int64 [1, length] each; the same for the same seed.

    Args:
        length: tokens of each prompt.

    Raises:
        ValueError: no file is long enough.
    """
    starts, prompts = source_starts(8 * length, seed, held_out), []
    while len(prompts) < count:
        ids = tokenizer(next(starts)[: 16 * length], return_tensors="pt").input_ids[:, :length]
        if ids.shape[1] == length:
            prompts.append(ids)
    return prompts
