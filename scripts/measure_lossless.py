"""Measure how often lossless text equals autoregression's, and the passes and memory it takes.

    python scripts/measure_lossless.py

Both trained checkpoints run at full depth, in float32 and in bfloat16. Writes docs/benchmarks/lossless.json and
lossless.md.
"""

import json
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problem_prompts
from hf_diffusion_forcing.evaluation.python_source import source_prompts

ROOT = Path(__file__).parent.parent
CHECKPOINTS = {"problems": bundled_checkpoint(), "Python source": ROOT / "tests" / "fixtures" / "python-source"}
CHOICES = {"greedy": {}, "sampled": {"do_sample": True, "top_k": 0}}


def rows(count: int, room: int) -> Iterator[dict]:
    """Yield one row per domain, dtype and way of choosing tokens."""
    for domain, path in CHECKPOINTS.items():
        tokenizer = AutoTokenizer.from_pretrained(path)
        if domain == "problems":
            asked = problem_prompts(tokenizer, count, seed=2027, kind="worked")
        else:
            asked = source_prompts(tokenizer, count, 96)
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
            for choice, settings in CHOICES.items():
                common = {"seed": 0, "max_new_tokens": room, "return_dict_in_generate": True} | settings
                texts = tokens = waves = passes = changed = 0
                kv_bytes = [0, 0]
                for ids in tqdm(asked, desc=f"{domain}, {str(dtype)[6:]}, {choice}", leave=False):
                    expected = model.generate(ids, sampler="autoregressive", **common)
                    output = model.generate(ids, sampler="speculative_wavefront", **common)
                    texts += 1
                    changed += output.sequences.tolist() != expected.sequences.tolist()
                    tokens += output.stats.decoded_tokens
                    waves += output.stats.waves
                    passes += output.stats.core_passes
                    kv_bytes[0] += output.cache.nbytes
                    kv_bytes[1] += expected.cache.nbytes
                depth, steps = output.stats.draft_depth, model.config.mean_recurrence
                yield {
                    "domain": domain,
                    "dtype": str(dtype)[6:],
                    "choice": choice,
                    "draft_depth": depth,
                    "texts": texts,
                    "changed": changed,
                    "tokens": tokens,
                    "mean_accepted_length": tokens / waves,
                    "fewer_core_passes": steps * tokens / passes,
                    "of_bound": depth * tokens / passes,
                    "kv_ratio": kv_bytes[0] / kv_bytes[1],
                }


def page(record: dict) -> str:
    """Return the record as Markdown."""
    lines = [
        "# The lossless wavefront against autoregression",
        "",
        f"Measured on {record['date']} on {record['machine']}, by `{record['command']}`. Both trained checkpoints "
        "decode at r = 32, batch 1.",
        "",
        "- *Changed* counts the texts in which any token differs from autoregression.",
        "- *Fewer core passes* is the recurrences that autoregression runs in sequence, divided by the core passes of "
        "the lossless wavefront. Its upper bound is r / k; *of the bound* is the share reached.",
        "- *KV* is the size of the cache relative to that of autoregression.",
        "",
        "| text | weights | choice | texts | changed | mean accepted length | fewer core passes | of the bound | KV |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['domain']} | {row['dtype']} | {row['choice']} | {row['texts']} | {row['changed']} | "
            f"{row['mean_accepted_length']:.1f} | {row['fewer_core_passes']:.1f}x | {100 * row['of_bound']:.0f} % | "
            f"{row['kv_ratio']:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="Texts per row.")] = 48,
    max_new_tokens: int = 128,
    output: Path = ROOT / "docs" / "benchmarks",
):
    record = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU, torch {torch.__version__}",
        "command": f"scripts/measure_lossless.py --count {count} --max-new-tokens {max_new_tokens}",
        "rows": list(rows(count, max_new_tokens)),
    }
    (output / "lossless.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / "lossless.md").write_text(page(record))
    typer.echo(page(record))


if __name__ == "__main__":
    typer.run(main)
