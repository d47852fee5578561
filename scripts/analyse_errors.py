"""Find where the preset fast differs from autoregression, and write the tables of docs/error-analysis.md.

    python scripts/analyse_errors.py

Both small checkpoints decode in float32, so that differences come from the sampler and not from rounding. Writes the
data to docs/benchmarks and the figures to docs/images.
"""

import json
import re
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.divergence import compare_samplers
from hf_diffusion_forcing.evaluation.journal import write_file
from hf_diffusion_forcing.evaluation.task import Task

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE = DOCS / "error-analysis.md"
FAST = "diffusion_forcing:preset=fast"
CASES = {
    "problems": (bundled_checkpoint(), Task.from_problems(count=200), FAST, 160),
    "source": (ROOT / "tests/fixtures/python-source", Task.from_python_source(64), FAST, 96),
    "source-loose": (
        ROOT / "tests/fixtures/python-source",
        Task.from_python_source(64),
        f"{FAST},exit_threshold=0.1",
        96,
    ),
}
"""Per section of the page: checkpoint, task, sampler, maximum of new tokens."""


def main(
    case: Annotated[list[str] | None, typer.Option(help="The cases to measure; all by default.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
):
    torch.set_num_threads(threads)
    for name in case or CASES:
        path, task, sampler, room = CASES[name]
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        model.config.name_or_path = Path(path).name  # keeps local paths out of the report
        result = compare_samplers(model, tokenizer, task, sampler=sampler, batch_size=16, max_new_tokens=room)
        write_file(DOCS / "benchmarks" / f"error-analysis-{name}.json", json.dumps(result.to_dict(), indent=1) + "\n")
        if result.divergences:
            result.draw(DOCS / "images" / f"error-analysis-{name}.png")
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        part = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        report = result.to_markdown().replace("hf-diffusion-forcing diff", "scripts/analyse_errors.py")
        page, replaced = part.subn(lambda _, text=begin + "\n" + report + "\n" + end: text, PAGE.read_text())
        if not replaced:
            raise typer.BadParameter(f"{PAGE} has no section marked {name}: add its comments to the page.")
        write_file(PAGE, page)
        print(report)


if __name__ == "__main__":
    typer.run(main)
