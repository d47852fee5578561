"""Run the laws and the contract tests with several versions of Python, torch and transformers, and print a table.

    python scripts/try_versions.py python3.11 --torch 2.6.0 --transformers 5.23.0 --without torchao
    python scripts/try_versions.py python3.11 python3.13 --torch 2.13.0 --transformers 5.23.0 --transformers 5.24.0

Each combination gets a virtual environment of its own, which is deleted afterwards: the package with its `test` extra,
as pip installs it beside these versions, less packages that do not work with them (`--without`). An environment takes
up to 6 GB, and the first of a version of torch downloads most of that.
"""

import os
import re
import subprocess
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/laws", "tests/contract")


def install(interpreter: str, torch: str, transformers: str, without: list[str] | None, folder: Path) -> Path:
    """A new environment's interpreter; CalledProcessError if pip finds no way to install the versions."""
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    wanted = [f"torch=={torch}", f"transformers=={transformers}", f"{ROOT}[test]"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    if without:
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *without], check=True)
    return python


def outcome(python: Path) -> str:
    """pytest's closing line, such as "614 passed, 2 skipped"."""
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *TESTS]
    # The copy that was installed is tested, not the checkout's.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line.strip("= ") for line in result.stdout.splitlines() if re.search(r" in \d+\.\d+s", line)]
    if result.returncode:
        print(result.stdout[-4000:], result.stderr[-2000:], sep="\n")
    return re.sub(r" in .*", "", lines[-1]) if lines else f"pytest ended with {result.returncode}"


def main(
    interpreters: Annotated[list[str], typer.Argument(help="Python interpreters.")],
    torch: Annotated[list[str], typer.Option(help="Versions of torch.")],
    transformers: Annotated[list[str], typer.Option(help="Versions of transformers.")],
    without: Annotated[list[str] | None, typer.Option(help="Packages to uninstall before the tests run.")] = None,
):
    rows = []
    for interpreter, torch_version, transformers_version in product(interpreters, torch, transformers):
        version = subprocess.run(
            [interpreter, "-c", "import platform; print(platform.python_version())"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                told = outcome(install(interpreter, torch_version, transformers_version, without, Path(folder)))
            except subprocess.CalledProcessError:
                told = "cannot be installed"
        rows.append(f"| {version} | {torch_version} | {transformers_version} | {told} |")
        print(rows[-1], f"({time.monotonic() - start:.0f} s)", flush=True)
    print("\n| Python | torch | transformers | tests |\n| --- | --- | --- | --- |", *rows, sep="\n")


if __name__ == "__main__":
    typer.run(main)
