"""Fetch the test classes of the installed transformers, which its wheel lacks, for tests/transformers_suite.

    python scripts/fetch_transformers_tests.py

Downloads transformers' source distribution with pip, which compares its hash with the package index's (and with the one
below, for versions that have one), and unpacks the files of its tests/ folder into a cache. Does nothing where they are
there already. Prints the folder.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

HASHES = {
    "5.23.0": "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71",
    "5.24.0": "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3",
}
"""The SHA-256 of the source distributions that were read."""

PACKAGE = "transformers_tests"
"""The name under which the files are imported: they import each other as parts of one package."""


def cache_folder() -> Path:
    """The folder to put on sys.path for the tests; `XDG_CACHE_HOME` moves it, as usual."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "hf-diffusion-forcing" / f"transformers-{version('transformers')}"


def download(folder: Path) -> Path:
    """The source distribution of the installed version, in a folder; CalledProcessError if pip cannot fetch it."""
    installed = version("transformers")
    requirement = f"transformers=={installed}"
    if installed in HASHES:
        requirement += f" --hash=sha256:{HASHES[installed]}"
    (folder / "wanted.txt").write_text(requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    subprocess.run([*command, "--dest", folder, "-r", folder / "wanted.txt"], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Write the Python files of an archive's tests/ folder, and nothing else of it, as a package.

    Raises:
        ValueError: there are none.
    """
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    with tarfile.open(archive) as opened:
        for member in opened:
            # A plain file whose whole path is what it should be: no link, no folder above, no other place.
            match = re.fullmatch(r"transformers-[\w.]+/tests/(test_\w+\.py)", member.name)
            if match and member.isfile():
                (folder / match[1]).write_bytes(opened.extractfile(member).read())
    if not any(folder.glob("test_*.py")):
        raise ValueError(f"{archive.name} has no tests/test_*.py: it is no source distribution of transformers.")


def fetch() -> Path:
    """The folder of the tests, fetched if it is not there."""
    target = cache_folder()
    if not (target / PACKAGE).exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            made = Path(temporary) / "made"
            unpack(download(Path(temporary)), made / PACKAGE)
            try:
                made.rename(target)
            except OSError:
                # Another process was first.
                if not (target / PACKAGE).exists():
                    raise
    return target


if __name__ == "__main__":
    print(fetch())
