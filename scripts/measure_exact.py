"""Measure what rounds alike on this machine, how often exact lossless text changes, and what `exact=True` costs.

    python scripts/measure_exact.py
    python scripts/measure_exact.py --part cost

Writes docs/benchmarks/exact.json and exact.md; a part replaces only its own rows. Run the cost on an otherwise idle
machine.
"""

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from measure_lossless import CHOICES, FACTOR, prompts
from measured_parts import CHECKPOINTS, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import bundled_checkpoint, pack_linear_weights, unpack_linear_weights
from hf_diffusion_forcing.compat import pack_weight, packed_linear
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.packing import packable_dtypes

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((96, 61), (128, 384), (512, 1536), (2048, 512), (512, 4096))
"""Inputs and outputs of the linear layers that are compared."""
WIDTHS = (*range(1, 13), 15, 16, 17, 20, 31, 32, 33, 64, 65, 100, 128, 256)


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


def linear_rows(threads: int) -> Iterator[dict]:
    """Yield, for each kind of linear layer, the widths that round alike, and those at which the place matters."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        for kind in ("plain", "packed") if dtype in packable_dtypes() else ("plain",):
            found, mixed = set(), set()
            for inputs, outputs in SHAPES:
                weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
                layer = partial(F.linear, weight=weight)
                if kind == "packed":
                    layer = partial(packed_linear, packed=pack_weight(weight, 8))
                x, by_width = torch.randn(inputs).to(dtype), {}
                for width in WIDTHS:
                    outs = []
                    for place in {*range(min(width, 17)), width // 2, width - 1}:
                        others = torch.randn(1, width, inputs).to(dtype)
                        others[0, place] = x
                        outs.append(layer(others)[0, place])
                    if all(torch.equal(outs[0], y) for y in outs):
                        by_width[width] = outs[0]
                    else:
                        mixed.add(width)
                found.add(json.dumps(classes(by_width)))
            layer_name = f"{name_of(dtype)}, {kind}"
            yield {"threads": threads, "layer": layer_name, "mixed": sorted(mixed), "classes": sorted(found)}


def attention_rows(threads: int) -> Iterator[dict]:
    """Yield how often a query's output depends on the masked keys behind those it sees, and on what is beside it."""
    torch.manual_seed(0)
    heads, head_dim, seen_lengths = 4, 64, (1, 9, 37, 130, 255, 511, 600, 1000)
    query = torch.randn(heads, head_dim)
    keys, values = torch.randn(heads, 2048, head_dim), torch.randn(heads, 2048, head_dim)

    def output(seen: int, extent: int, width: int = 1, rows: int = 1) -> torch.Tensor:
        q, mask = torch.randn(rows, heads, width, head_dim), torch.zeros(rows, 1, width, extent)
        q[-1, :, -1], mask[..., -1, seen:] = query, float("-inf")
        k, v = (x[:, :extent].expand(rows, -1, -1, -1) for x in (keys, values))
        return F.scaled_dot_product_attention(q, k, v, mask)[-1, :, -1]

    def row(what: str, compared: Callable[[int], list[torch.Tensor]]) -> dict:
        changed = sum(len(classes(dict(enumerate(compared(seen))))) > 1 for seen in seen_lengths)
        return {"threads": threads, "attention": what, "lengths": len(seen_lengths), "changed": changed}

    for width in (1, 4):
        for multiple in (1, 8, 16, 64):
            yield row(
                f"{width} quer{'y' if width == 1 else 'ies'}, masked keys behind, keys a multiple of {multiple}",
                lambda seen, m=multiple, w=width: [
                    output(seen, seen + -seen % m + m * more, w) for more in (0, 1, 2, 5, 16)
                ],
            )
    yield row("1 query beside 3 or 15 other rows", lambda seen: [output(seen, 1024, rows=n) for n in (1, 4, 16)])
    yield row("1 query beside 3 or 15 others of its row", lambda seen: [output(seen, 1024, n) for n in (1, 4, 16)])


def rounding_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the rows of one thread and of two."""
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        yield from linear_rows(threads)
        yield from attention_rows(threads)
    torch.set_num_threads(before)


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


def cost_rows(count: int, room: int, batch: int = 1) -> Iterator[dict]:
    """Yield the time of exact calls over that of others: the two take turns on every prompt."""
    model = widen(AutoModelForCausalLM.from_pretrained(bundled_checkpoint(), dtype=torch.float32).eval(), FACTOR).eval()
    asked = prompts("problems", 4 * count)
    for weights in ("plain", "packed"):
        if weights == "packed":
            pack_linear_weights(model)
        for sampler, tokens in (("autoregressive", room // 4), ("speculative_wavefront", room)):
            settings = {"sampler": sampler, "seed": 0, "max_new_tokens": tokens, "eos_token_id": None}
            ratios = {"decoding": [], "prompt": []}
            for turn in tqdm(range(count + 1), desc=f"{weights}, {sampler}, batch {batch}", leave=False):
                begin = turn * batch % (4 * count)
                ids = same_length(asked[begin : begin + batch])
                calls = {}
                for exact in (False, True) if turn % 2 else (True, False):
                    calls[exact] = timed_generate(model, {"input_ids": ids}, settings | {"exact": exact}, first=True)
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


def spelled(found: list[str]) -> str:
    """Classes as text: "1; 2, 3; 4, 8, 12, ..., 256"."""
    kinds = []
    for each in found:
        groups = []
        for members in json.loads(each):
            text = ", ".join(map(str, members))
            if members == [width for width in WIDTHS if members[0] <= width <= members[-1]] and len(members) > 2:
                text = f"{members[0]} to {members[-1]}"
            groups.append(text)
        kinds.append("; ".join(groups))
    return " or ".join(kinds)


def rounding_page(part: dict) -> list[str]:
    lines = [
        "## What rounds alike",
        "",
        f"{signature(part)} *Equal widths* are numbers of positions over which a linear layer gives one of them the "
        "same numbers, bit for bit, wherever it stands; a semicolon is between widths that round differently. At the "
        "widths in the last column, the numbers depend on the place.",
        "",
        "| threads | linear layer | equal widths | the place matters |",
        "| ---: | --- | --- | --- |",
    ]
    for row in part["rows"]:
        if "layer" in row:
            mixed = ", ".join(map(str, row["mixed"])) or "nowhere"
            lines.append(f"| {row['threads']} | {row['layer']} | {spelled(row['classes'])} | {mixed} |")
    lines += [
        "",
        "Attention of torch's kernel, in float32. *Changed* counts the numbers of seen keys at which a query's output "
        "depends on what is compared.",
        "",
        "| threads | compared | numbers of keys | changed |",
        "| ---: | --- | ---: | ---: |",
    ]
    for row in part["rows"]:
        if "attention" in row:
            lines.append(f"| {row['threads']} | {row['attention']} | {row['lengths']} | {row['changed']} |")
    return lines


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
        f"## Cost at batch {part['rows'][0]['batch']}",
        "",
        f"{signature(part)} Time with `exact=True` over the time without: medians of pairs that take turns, with the "
        f"least and the largest. The bundled checkpoint made {FACTOR} times as wide, float32, r = 32.",
        "",
        "| weights | sampler | pairs | decoding | prompt |",
        "| --- | --- | ---: | --- | --- |",
    ]
    for row in part["rows"]:
        cells = ["{:.2f}x ({:.2f} to {:.2f})".format(*row[name]) for name in ("decoding", "prompt")]
        lines.append(f"| {row['weights']} | {row['sampler']} | {row['pairs']} | {cells[0]} | {cells[1]} |")
    return lines


PARTS = {
    "rounding": (rounding_rows, rounding_page),
    "texts": (text_rows, texts_page),
    "cost": (cost_rows, cost_page),
    "batches": (partial(cost_rows, batch=4), cost_page),
}


if __name__ == "__main__":
    measure_parts("exact", "Exact arithmetic", PARTS, count=12, counted="Texts per row, or pairs.", max_new_tokens=128)
