"""The command `generate`."""

import json
import time
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, load
from .options import AsJson, Dtype, MaxNewTokens, Seed
from .sampler_options import PlainSettings, Sampler, chosen_sampler


def generate(
    settings: PlainSettings,
    model: ModelArgument = None,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = ...,
    sampler: Sampler = None,
    max_new_tokens: MaxNewTokens = 160,
    dtype: Dtype = "auto",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Continue a prompt; a terminal shows drafts while they are refined."""
    kwargs = chosen_sampler(sampler, settings) | {"seed": seed, "max_new_tokens": max_new_tokens}
    from transformers import TextDiffusionStreamer

    console = Console()
    network, tokenizer = load(model, dtype)
    live = console.is_terminal and not as_json
    streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if live else None
    inputs = tokenizer(prompt, return_tensors="pt")
    began = time.perf_counter()
    with exit_on_error():
        output = network.generate(**inputs, **kwargs, streamer=streamer, return_dict_in_generate=True)
    seconds = time.perf_counter() - began
    new = output.sequences[0, inputs.input_ids.shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    if as_json:
        stats = getattr(output, "stats", None)
        record = {"prompt": prompt, "text": text, "tokens": len(new), "seconds": seconds, "settings": kwargs}
        print(json.dumps(record | {"stats": stats.to_dict() if stats else None}))
    elif not live:
        print(text)
