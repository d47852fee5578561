"""Measure weights in fewer bits: how often each depth still predicts the same token, what is solved, and the time.

    python scripts/measure_weights.py
    python scripts/measure_weights.py --part speed

A recurrent-depth model applies the same rounded weights again and again, so the error is reported by depth. torchao
rounds the linear layers. Writes docs/benchmarks/weights.json and weights.md; a part replaces only its own rows. Run the
speed on an otherwise idle machine.
"""

import statistics
from collections.abc import Iterator
from itertools import islice

import torch
from measure_lossless import FACTOR, prompts
from measured_parts import CHECKPOINTS, measure_parts, signature
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import pack_linear_weights
from hf_diffusion_forcing.evaluation.inspection import inspect_recurrences
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.evaluation.widening import widen

DEPTHS = (1, 4, 32)
GROUP = 32
"""Weights that share a scale in int4."""
KINDS = ("float32", "float32, packed", "bfloat16", "int8", "int4", "float8")
SAMPLERS = {"autoregressive": {"sampler": "autoregressive"}, "fast": {"sampler_preset": "fast"}}


def model_of(domain: str, kind: str, factor: int = 1):
    """A checkpoint with weights of a kind."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS[domain], dtype=dtype, decoding_heads=False).eval()
    if factor > 1:
        model = widen(model, factor).eval()
    if kind == "float32, packed":
        return pack_linear_weights(model)
    rounded = {
        "int8": Int8WeightOnlyConfig,
        "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)),
        "float8": Float8WeightOnlyConfig,
    }
    if kind in rounded:
        quantize_(model, rounded[kind]())
    return model


def readouts_of(model, asked: list[torch.Tensor], texts: list[torch.Tensor]) -> torch.Tensor:
    """What every depth predicts at the new tokens of given texts, int64 [num_steps, n]."""
    found = []
    for prompt, text in zip(asked, texts, strict=True):
        insight = inspect_recurrences(model, text, num_steps=max(DEPTHS), prompt_lengths=[prompt.shape[1] - 1])
        found.append(insight.readouts[:, insight.is_new])
    return torch.cat(found, dim=1)


def agreement_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the share of tokens that each depth predicts as in float32, and the share of problems solved."""
    for domain in CHECKPOINTS:
        asked, texts, expected = prompts(domain, count), [], None
        for kind in tqdm([kind for kind in KINDS if kind != "float32, packed"], desc=domain, leave=False):
            model = model_of(domain, kind)
            if kind == "float32":
                texts = [
                    model.generate(ids, **SAMPLERS["autoregressive"], seed=0, max_new_tokens=room) for ids in asked
                ]
            readouts = readouts_of(model, asked, texts)
            expected = readouts if expected is None else expected
            same = (readouts == expected).double().mean(1)
            row = {"domain": domain, "weights": kind, "tokens": readouts.shape[1]}
            row["agreement"] = {depth: same[depth - 1].item() for depth in DEPTHS}
            if domain == "problems":
                chosen = list(islice(problems(2027, held_out=True), 8 * count))
                tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS[domain], padding_side="left")
                row["solved_of"] = len(chosen)
                row["solved"] = {
                    name: accuracy(chosen, solve(model, tokenizer, chosen, max_new_tokens=160, **settings))
                    for name, settings in SAMPLERS.items()
                }
            yield row


def speed_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the time of decoding over that with plain float32 weights: all kinds take turns on every prompt."""
    models = {kind: model_of("problems", kind, FACTOR) for kind in KINDS}
    asked = prompts("problems", count)
    for name, settings in SAMPLERS.items():
        tokens = room // 4 if name == "autoregressive" else room
        common = settings | {"seed": 0, "eos_token_id": None, "max_new_tokens": tokens}
        ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for model in models.values():
            timed_generate(model, {"input_ids": asked[0]}, common | {"max_new_tokens": 8})
        for ids in tqdm(asked, desc=name, leave=False):
            calls = {
                kind: timed_generate(model, {"input_ids": ids}, common, first=True) for kind, model in models.items()
            }
            for kind, call in calls.items():
                ratios[kind].append(call.seconds_per_token / calls["float32"].seconds_per_token)
        for kind, values in ratios.items():
            yield {
                "sampler": name,
                "weights": kind,
                "prompts": count,
                "time": [each(values) for each in (statistics.median, min, max)],
            }


def agreement_page(part: dict) -> list[str]:
    lines = [
        "## Agreement",
        "",
        f"{signature(part)} The share of new tokens at which a depth predicts the same token as with float32 weights, "
        "given the text of float32. *Solved* is the share of held-out problems, by autoregression and by the preset "
        f"*fast*. int4 has a scale for {GROUP} weights, int8 and float8 for a row.",
        "",
        f"| text | weights | tokens | {' | '.join(f'r = {depth}' for depth in DEPTHS)} | solved | fast |",
        f"| --- | --- | ---: |{' ---: |' * len(DEPTHS)} ---: | ---: |",
    ]
    for row in part["rows"]:
        shares = " | ".join(f"{share:.2%}" for share in row["agreement"].values())
        solved = " | ".join(f"{share:.1%}" for share in row["solved"].values()) if "solved" in row else "|"
        lines.append(f"| {row['domain']} | {row['weights']} | {row['tokens']} | {shares} | {solved} |")
    return lines


def speed_page(part: dict) -> list[str]:
    lines = [
        "## Speed",
        "",
        f"{signature(part)} Time of decoding over that with plain float32 weights: medians over prompts, with the "
        f"least and the largest. The bundled checkpoint {FACTOR} times as wide, batch 1; autoregression at r = 32.",
        "",
        "| sampler | weights | prompts | time |",
        "| --- | --- | ---: | --- |",
    ]
    for row in part["rows"]:
        cells = "{:.2f}x ({:.2f} to {:.2f})".format(*row["time"])
        lines.append(f"| {row['sampler']} | {row['weights']} | {row['prompts']} | {cells} |")
    return lines


PARTS = {
    "agreement": (agreement_rows, agreement_page),
    "speed": (speed_rows, speed_page),
}


if __name__ == "__main__":
    measure_parts(
        "weights",
        "Weights in fewer bits",
        PARTS,
        count=12,
        counted="Texts of each kind, or prompts.",
        max_new_tokens=128,
    )
