"""Measure what rounds alike on this machine, how often exact lossless text changes, and what `exact=True` costs.

    python scripts/measure_exact.py
    python scripts/measure_exact.py --part cost

Writes docs/benchmarks/exact.json and exact.md; a part replaces only its own rows. Run the cost on an otherwise idle
machine.
"""

import json
import platform
import statistics
from collections.abc import Iterator
from datetime import date
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint, pack_linear_weights, unpack_linear_weights
from hf_diffusion_forcing.compat import pack_weight, packed_linear
from hf_diffusion_forcing.evaluation.problems import problem_prompts
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.packing import packable_dtypes

ROOT = Path(__file__).parent.parent
CHECKPOINTS = {"problems": bundled_checkpoint(), "Python source": ROOT / "tests" / "fixtures" / "python-source"}
CHOICES = {"greedy": {}, "sampled": {"do_sample": True, "top_k": 0}}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((96, 61), (128, 384), (512, 1536), (2048, 512), (512, 4096))
"""Inputs and outputs of the linear layers that are compared."""
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 256)
FACTOR = 4


class Part(StrEnum):
    all = "all"
    rounding = "rounding"
    texts = "texts"
    cost = "cost"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def classes(outputs: dict[int, torch.Tensor]) -> list[list[int]]:
    """The numbers whose outputs are equal bit for bit, class by class."""
    found: list[list[int]] = []
    for number, output in outputs.items():
        for members in found:
            if torch.equal(outputs[members[0]], output):
                members.append(number)
                break
        else:
            found.append([number])
    return found


def linear_rows() -> Iterator[dict]:
    """Yield, for each kind of linear layer, the widths whose numbers are equal, and whether the place matters."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        for kind in ("plain", "packed") if dtype in packable_dtypes() else ("plain",):
            found, moved = set(), False
            for inputs, outputs in SHAPES:
                weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
                layer = partial(F.linear, weight=weight)
                if kind == "packed":
                    layer = partial(packed_linear, packed=pack_weight(weight, 8))
                x, by_width = torch.randn(inputs).to(dtype), {}
                for width in WIDTHS:
                    for place in {0, width // 2, width - 1}:
                        others = torch.randn(1, width, inputs).to(dtype)
                        others[0, place] = x
                        y = layer(others)[0, place]
                        moved |= not torch.equal(by_width.setdefault(width, y), y)
                found.add(json.dumps(classes(by_width)))
            yield {"what": f"linear, {name_of(dtype)}, {kind}", "place_matters": moved, "classes": sorted(found)}


def attention_rows() -> Iterator[dict]:
    """Yield what a query's output depends on: masked keys behind those it sees, and the queries beside it."""
    torch.manual_seed(0)
    heads, head_dim, seen_lengths = 4, 64, (1, 9, 37, 130, 255, 511, 600, 1000)
    query, keys, values = torch.randn(heads, head_dim), torch.randn(heads, 2048, head_dim), torch.randn(heads, 2048, 64)

    def output(seen: int, width: int, extent: int) -> torch.Tensor:
        q, mask = torch.randn(1, heads, width, head_dim), torch.zeros(1, 1, width, extent)
        q[0, :, -1], mask[..., -1, seen:] = query, float("-inf")
        return F.scaled_dot_product_attention(q, keys[None, :, :extent], values[None, :, :extent], mask)[0, :, -1]

    for width in (1, 4, 16):
        for multiple in (1, 8, 16, 64):
            changed = 0
            for seen in seen_lengths:
                least = seen + -seen % multiple
                longer = [least + multiple * each for each in (1, 2, 5, 16)]
                changed += any(not torch.equal(output(seen, width, least), output(seen, width, e)) for e in longer)
            yield {"queries": width, "multiple": multiple, "lengths": len(seen_lengths), "changed": changed}
    found = set()
    for seen in seen_lengths:
        extent = seen + -seen % 64
        found.add(json.dumps(classes({width: output(seen, width, extent) for width in (*range(1, 9), 16, 32, 64)})))
    yield {"beside": sorted(found)}


def rounding_rows(count: int, room: int) -> Iterator[dict]:
    yield from linear_rows()
    yield from attention_rows()


def prompts(domain: str, count: int) -> list[torch.Tensor]:
    """The prompts of a domain, int64 [1, length] each."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS[domain])
    if domain == "problems":
        return problem_prompts(tokenizer, count, seed=2027, kind="worked")
    return source_prompts(tokenizer, count, 96)


def text_rows(count: int, room: int) -> Iterator[dict]:
    """Yield how many texts differ between the two samplers, without and with exact arithmetic."""
    for domain, path in CHECKPOINTS.items():
        asked = prompts(domain, count)
        for dtype in DTYPES:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
            for choice, settings in CHOICES.items():
                changed = {}
                for exact in (False, True):
                    common = {"seed": 0, "max_new_tokens": room, "exact": exact} | settings
                    changed[exact] = 0
                    for ids in tqdm(asked, desc=f"{domain}, {name_of(dtype)}, {choice}, {exact}", leave=False):
                        expected = model.generate(ids, sampler="autoregressive", **common)
                        got = model.generate(ids, sampler="speculative_wavefront", **common)
                        changed[exact] += got.tolist() != expected.tolist()
                yield {
                    "domain": domain,
                    "dtype": name_of(dtype),
                    "choice": choice,
                    "texts": count,
                    "changed": changed[False],
                    "changed_exact": changed[True],
                }


def cost_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the time of exact calls over that of others: the two take turns on every prompt."""
    model = widen(AutoModelForCausalLM.from_pretrained(bundled_checkpoint(), dtype=torch.float32).eval(), FACTOR).eval()
    asked = prompts("problems", 4 * count)
    for weights in ("plain", "packed"):
        if weights == "packed":
            pack_linear_weights(model)
        for batch in (1, 4):
            for sampler, tokens in (("autoregressive", room // 4), ("speculative_wavefront", room)):
                settings = {"sampler": sampler, "seed": 0, "max_new_tokens": tokens, "eos_token_id": None}
                ratios = {"decoding": [], "prompt": []}
                for turn in tqdm(range(count + 1), desc=f"{weights}, {sampler}, batch {batch}", leave=False):
                    ids = same_length(asked[turn * batch % len(asked) :][:batch] or asked[:batch])
                    calls = {}
                    for exact in (False, True) if turn % 2 else (True, False):
                        calls[exact] = timed_generate(
                            model, {"input_ids": ids}, settings | {"exact": exact}, first=True
                        )
                    if turn:  # the first is a warm-up
                        seconds = [calls[exact].seconds_per_token for exact in (True, False)]
                        ratios["decoding"].append(seconds[0] / seconds[1])
                        ratios["prompt"].append(calls[True].first / calls[False].first)
                yield {
                    "weights": weights,
                    "sampler": sampler,
                    "batch": batch,
                    "pairs": count,
                    **{name: [f(values) for f in (statistics.median, min, max)] for name, values in ratios.items()},
                }
    unpack_linear_weights(model)


def same_length(rows: list[torch.Tensor]) -> torch.Tensor:
    """Prompts cut from the left to the shortest one, int64 [batch, length]."""
    shortest = min(row.shape[1] for row in rows)
    return torch.cat([row[:, -shortest:] for row in rows])


def signature(part: dict) -> str:
    """When, where and how a part was measured."""
    return f"Measured on {part['date']} on {part['machine']}, by `{part['command']}`."


def spelled(found: list[str]) -> str:
    """Classes as text: "1; 2, 3; 4 to 256"."""
    kinds = []
    for each in found:
        groups = json.loads(each)
        kinds.append("; ".join(f"{g[0]} to {g[-1]}" if len(g) > 2 else ", ".join(map(str, g)) for g in groups))
    return " or ".join(kinds)


def rounding_page(part: dict) -> list[str]:
    lines = [
        "## What rounds alike",
        "",
        f"{signature(part)} *Equal widths* are numbers of positions over which a layer gives one of them the same "
        "numbers bit for bit; a semicolon is between widths that round differently.",
        "",
        "| layer | the place among the positions matters | equal widths |",
        "| --- | --- | --- |",
    ]
    for row in part["rows"]:
        if "what" in row:
            lines.append(f"| {row['what']} | {'yes' if row['place_matters'] else 'no'} | {spelled(row['classes'])} |")
    lines += [
        "",
        "Attention, float32, as torch's kernel computes it. *Changed* counts the lengths at which masked keys behind "
        "those that a query sees change its output, if the number of keys is a multiple of so many.",
        "",
        "| queries | multiple | lengths | changed |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for row in part["rows"]:
        if "queries" in row:
            lines.append(f"| {row['queries']} | {row['multiple']} | {row['lengths']} | {row['changed']} |")
    (beside,) = [row["beside"] for row in part["rows"] if "beside" in row]
    return [
        *lines,
        "",
        f"Numbers of queries that give the last the same output, with equally many keys: {spelled(beside)}.",
    ]


def texts_page(part: dict) -> list[str]:
    lines = [
        "## Texts",
        "",
        f"{signature(part)} Texts of the lossless wavefront that differ from autoregression's, both without and both "
        "with `exact=True`; r = 32, batch 1.",
        "",
        "| text | weights | choice | texts | changed | changed, exact |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['domain']} | {row['dtype']} | {row['choice']} | {row['texts']} | {row['changed']} | "
            f"{row['changed_exact']} |"
        )
    return lines


def cost_page(part: dict) -> list[str]:
    lines = [
        "## Cost",
        "",
        f"{signature(part)} Time with `exact=True` over the time without: medians of pairs that take turns, with the "
        f"least and the largest. The bundled checkpoint made {FACTOR} times as wide, float32, r = 32.",
        "",
        "| weights | sampler | batch | pairs | decoding | prompt |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    for row in part["rows"]:
        cells = ["{:.2f}x ({:.2f} to {:.2f})".format(*row[name]) for name in ("decoding", "prompt")]
        lines.append(
            f"| {row['weights']} | {row['sampler']} | {row['batch']} | {row['pairs']} | {cells[0]} | {cells[1]} |"
        )
    return lines


PARTS = {
    Part.rounding: (rounding_rows, rounding_page),
    Part.texts: (text_rows, texts_page),
    Part.cost: (cost_rows, cost_page),
}


def page(record: dict) -> str:
    """Return the record as Markdown."""
    lines = ["# Exact arithmetic"]
    for part, (_, write) in PARTS.items():
        if part in record:
            lines += ["", *write(record[part])]
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="Texts per row, or pairs.")] = 12,
    max_new_tokens: int = 128,
    part: Annotated[Part, typer.Option(help="What to measure.")] = Part.all,
    output: Path = ROOT / "docs" / "benchmarks",
):
    stored = output / "exact.json"
    record = json.loads(stored.read_text()) if stored.exists() else {}
    for name, (measure, _) in PARTS.items():
        if part in (Part.all, name):
            record[name] = {
                "date": date.today().isoformat(),
                "machine": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), "
                f"{torch.get_num_threads()} threads, torch {torch.__version__}",
                "command": f"scripts/measure_exact.py --part {name} --count {count} --max-new-tokens {max_new_tokens}",
                "rows": list(measure(count, max_new_tokens)),
            }
    stored.write_text(json.dumps(record, indent=1) + "\n")
    (output / "exact.md").write_text(page(record))
    typer.echo(page(record))


if __name__ == "__main__":
    typer.run(main)
