"""Measure layouts and precisions of weights, keys and values: the time, and how often the same tokens come out.

    python scripts/measure_weights.py
    python scripts/measure_weights.py --part speed

A recurrent-depth model applies the same rounded weights again and again, so agreement is reported by depth. torchao
rounds to int8, int4 and float8, FBGEMM packs in float16. Writes docs/benchmarks/weights.json and weights.md; a part
replaces only its own rows. Run the parts that take times on an otherwise idle machine.
"""

import statistics
from collections.abc import Callable, Iterator
from itertools import islice

import torch
from measure_lossless import FACTOR, prompts
from measured_parts import CHECKPOINTS, measure_parts, signature
from profile_decoding import attention_costs
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import pack_linear_weights
from hf_diffusion_forcing.evaluation.inspection import inspect_recurrences
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.timing import median_seconds, timed_generate
from hf_diffusion_forcing.evaluation.widening import widen

DEPTHS = (1, 4, 32)
GROUP = 32
"""Weights that share a scale in int4."""
KINDS = ("float32", "float32, packed", "float16, packed", "bfloat16", "int8", "int4", "float8")
PACKED = {"float32, packed": None, "float16, packed": torch.float16}
WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
FACTORS = (4, 8)
"""How many times as wide the models are whose layers are timed."""
SAMPLERS = {"autoregressive": {"sampler": "autoregressive"}, "fast": {"sampler_preset": "fast"}}


def model_of(domain: str, kind: str, factor: int = 1):
    """A checkpoint with weights of a kind."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS[domain], dtype=dtype, decoding_heads=False).eval()
    if factor > 1:
        model = widen(model, factor).eval()
    if kind in PACKED:
        return pack_linear_weights(model, dtype=PACKED[kind])
    rounded = {
        "int8": Int8WeightOnlyConfig,
        "int4": lambda: IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(GROUP)),
        "float8": Float8WeightOnlyConfig,
    }
    if kind in rounded:
        quantize_(model, rounded[kind]())
    return model


Calls = list[Callable[[torch.Tensor], torch.Tensor]]


def mkl_calls(weights: list[torch.Tensor], width: int) -> Calls:
    """Layers packed by MKL, for one number of positions."""

    def call(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, width)
        return lambda x: torch.ops.mkl._mkl_linear(x, packed, weight, None, width)

    return [call(weight) for weight in weights]


def dynamic_calls(weights: list[torch.Tensor]) -> Calls:
    """Layers in int8 packed by FBGEMM, which round the inputs of a call to int8 too, with one scale for all of them."""

    def call(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        scales, zeros = weight.abs().amax(1) / 127, torch.zeros(len(weight), dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
        return lambda x: torch.ops.quantized.linear_dynamic(x, packed)

    return [call(weight) for weight in weights]


@torch.no_grad()
def kernel_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the milliseconds of all linear layers of a model by the number of positions, kernels in turns."""
    for factor in FACTORS:
        kinds = [kind for kind in KINDS if kind in ("float32", "int8", *PACKED)]
        models = {kind: model_of("problems", kind, factor) for kind in kinds}
        layers = {
            kind: [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
            for kind, model in models.items()
        }
        weights = [layer.weight.detach() for layer in layers["float32"]]
        dynamic = dynamic_calls(weights)
        for width in tqdm(WIDTHS, desc=f"{factor} times", leave=False):
            inputs = [torch.randn(1, width, weight.shape[1]) for weight in weights]
            called = layers | {"float32, packed by MKL": mkl_calls(weights, width), "int8, inputs too": dynamic}
            calls = {
                kind: lambda each=each, inputs=inputs: [layer(x) for layer, x in zip(each, inputs, strict=True)]
                for kind, each in called.items()
            }
            seconds = median_seconds(calls, count)
            weighs = sum(weight.numel() for weight in weights)
            yield {
                "factor": factor,
                "weights": weighs,
                "calls": count,
                "positions": width,
                "milliseconds": {kind: 1e3 * each for kind, each in seconds.items()},
            }


def key_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the milliseconds of the attention of one layer by the precision of its keys and values."""
    config = AutoConfig.from_pretrained(CHECKPOINTS["problems"])
    yield from attention_costs(config.num_attention_heads * FACTOR, config.head_dim, repeats=2 * count)


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


def kernel_page(part: dict) -> list[str]:
    kinds = list(part["rows"][0]["milliseconds"])
    lines = [
        "## Linear layers by the number of positions",
        "",
        f"{signature(part)} Milliseconds of all linear layers of the bundled checkpoint, widened: the median of "
        f"{part['rows'][0]['calls']} calls, kernels in turns. *float32* is torch's own call. *packed* is "
        "`pack_linear_weights`. *int8* is torchao's, weights only; *int8, inputs too* is FBGEMM's, with one scale for "
        "the inputs of a call.",
        "",
        f"| widened | positions | {' | '.join(kinds)} |",
        f"| --- | ---: |{' ---: |' * len(kinds)}",
    ]
    for row in part["rows"]:
        cells = " | ".join(f"{each:.1f}" for each in row["milliseconds"].values())
        lines.append(f"| {row['factor']} times ({row['weights'] / 1e6:.0f}M) | {row['positions']} | {cells} |")
    return lines


def key_page(part: dict) -> list[str]:
    kinds = [name for name in part["rows"][0] if name not in ("keys", "queries")]
    lines = [
        "## Keys and values",
        "",
        f"{signature(part)} Milliseconds of the attention of one layer of the bundled checkpoint, {FACTOR} times as "
        "wide. Keys and values are float32 unless the column says otherwise.",
        "",
        f"| keys | queries | {' | '.join(kinds)} |",
        f"| ---: | ---: |{' ---: |' * len(kinds)}",
    ]
    for row in part["rows"]:
        lines.append(f"| {row['keys']} | {row['queries']} | {' | '.join(f'{row[kind]:.2f}' for kind in kinds)} |")
    return lines


def agreement_page(part: dict) -> list[str]:
    lines = [
        "## Agreement",
        "",
        f"{signature(part)} The share of new tokens at which a depth predicts the same token as with float32 weights, "
        "given the text of float32. *Solved* is the share of held-out problems, by autoregression and by the preset "
        f"*fast*. int4 has a scale for {GROUP} weights, int8 and float8 for a row, float16 none.",
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
    "kernels": (kernel_rows, kernel_page),
    "keys": (key_rows, key_page),
    "agreement": (agreement_rows, agreement_page),
    "speed": (speed_rows, speed_page),
}


if __name__ == "__main__":
    measure_parts(
        "weights",
        "Layouts and precisions of weights, keys and values",
        PARTS,
        count=12,
        counted="Texts of each kind, prompts, or calls of a kernel.",
        max_new_tokens=128,
    )
