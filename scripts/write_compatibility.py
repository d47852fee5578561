"""Call `generate()` with every argument and every sampler, and write docs/compatibility.md.

    python scripts/write_compatibility.py
    python scripts/write_compatibility.py --check

`--check` writes nothing and exits with status 1 if the page is stale. See
`hf_diffusion_forcing.evaluation.compatibility`.
"""

from pathlib import Path
from typing import Annotated

import typer

from hf_diffusion_forcing.evaluation.compatibility.page import is_current, page
from hf_diffusion_forcing.evaluation.compatibility.probes import ProbeError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "compatibility.md"


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit with status 1 if the page is stale.")
    ] = False,
    output: Annotated[Path, typer.Option(help="The file to write or check.")] = PAGE,
):
    try:
        text = page()
    except ProbeError as error:
        raise SystemExit(f"The page was not written:\n{error}") from error
    if not check:
        output.write_text(text)
    elif not is_current(output, text):
        raise SystemExit(f"{output} is stale: run python scripts/write_compatibility.py")


if __name__ == "__main__":
    typer.run(main)
