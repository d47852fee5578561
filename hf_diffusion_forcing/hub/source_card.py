"""The model card of the source checkpoint, which stays valid for the exported copy of the same weights."""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.utils import validate_repo_id

MARKER = "<!-- card of the exported checkpoint -->"
"""Marks the start of the source's text in an exported card, so that exporting again does not nest cards."""

IMAGE = re.compile(r"(!\[[^\]]*\]\()([^)\s:]+)(?=[)\s])")
IMAGE_SUFFIXES = {".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp"}


@dataclass
class SourceCard:
    """The parts of a README.md.

    Args:
        data: its metadata.
        body: its text, with headings one level down; empty without a card.
        images: files of the images in the text, by their paths there.
        repo_id: its Hub repository, if it has one.
    """

    data: ModelCardData = field(default_factory=ModelCardData)
    body: str = ""
    images: dict[str, Path] = field(default_factory=dict)
    repo_id: str | None = None

    @classmethod
    def of(cls, source: str | os.PathLike) -> "SourceCard":
        """The card of a checkpoint; empty if there is none.

        Args:
            source: a folder, or the id of a repository on the Hub.

        Raises:
            ValueError: `source` is neither, or the card's metadata cannot be read.
        """
        folder = Path(source)
        if not folder.is_dir():
            return cls._of_repository(str(source))
        if not (folder / "README.md").is_file():
            return cls()
        card = cls._read(folder / "README.md")
        for _, path in IMAGE.findall(card.body):
            file = (folder / path).resolve()
            inside = file.is_relative_to(folder.resolve()) and not Path(path).is_absolute()
            if inside and file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES:
                card.images[path] = file
        return card

    @classmethod
    def _of_repository(cls, repo_id: str) -> "SourceCard":
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"source={repo_id!r} is neither a folder nor the id of a repository: {error}") from error
        try:
            card = cls._read(repo_id)
        except EntryNotFoundError:  # no README.md, or none in the cache and no network
            card = cls()
        card.repo_id = repo_id
        card.body = IMAGE.sub(rf"\1https://huggingface.co/{repo_id}/resolve/main/\2", card.body)
        return card

    @classmethod
    def _read(cls, source: Path | str) -> "SourceCard":
        try:
            card = ModelCard.load(source, ignore_metadata_errors=True)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"README.md of {source} has metadata that cannot be read: {error}") from error
        text = card.text.replace("\r\n", "\n")
        _, marker, rest = text.partition(MARKER)
        return cls(data=card.data, body=rest.strip() if marker else _headings_down(text).strip())

    def save_images(self, folder: Path) -> None:
        """Copy the images to the same paths in another folder."""
        for path, file in self.images.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / path)


def _headings_down(text: str) -> str:
    """Move every heading of a Markdown text one level down, except in code blocks."""
    lines, fenced = [], False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r"#{1,5} ", line):
            line = "#" + line
        lines.append(line)
    return "\n".join(lines)
