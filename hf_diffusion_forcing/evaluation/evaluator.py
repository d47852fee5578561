"""Several samplers over the same task, side by side: in batches, over processes, and on from where a run stopped."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from datetime import date
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from ..settings.spelling import named_samplers
from ..settings.validation import check_integer
from ..version import __version__
from .journal import Journal
from .report import Evaluation
from .task import Sample, Task, batched

WARM_UP_TOKENS = 4


def evaluate_samplers(
    model,
    tokenizer,
    task: Task,
    samplers: list[str] | dict[str, dict[str, Any]],
    batch_size: int = 8,
    max_new_tokens: int = 160,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **generate_kwargs,
) -> Evaluation:
    """Decode a task with every sampler and compare answers, work and time.

    Each batch is decoded by all samplers in turn, so they see the same machine. Started as several processes
    (`accelerate launch`), they share the batches and every process returns the whole result, which has the texts and
    counts of one process. With `output`, every batch is on disk once it is done: the same call goes on from there.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: what is asked.
        samplers: each as one line (`parse_sampler`), or keywords of `generate()` by name; the first is the baseline.
        batch_size: samples decoded together. What a sample's text is does not depend on it; speed and shared core
            passes do.
        max_new_tokens: room for every output.
        seed: sample i is decoded with seed + i.
        output: folder for the journal and the results; nothing is written when None.
        overwrite: forget a run that is in `output`.
        progress: show a progress bar.
        generate_kwargs: of every `generate()` call: `stop_strings`, `do_sample`, ...

    Raises:
        ValueError, TypeError: an argument is wrong, a prompt leaves no room, or `output` has another run. Nothing has
            been computed then.
        ImportError: the packages of the extra `eval` are not installed.
    """
    from . import metrics  # noqa: F401  (says what is missing before anything is computed)

    check_integer("batch_size", batch_size, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    common = generate_kwargs | {"max_new_tokens": max_new_tokens}
    named = named_samplers(samplers)
    configs = {name: model.decoding_config(**kwargs | common) for name, kwargs in named.items()}
    check_prompts(model, tokenizer, task, max_new_tokens)
    state = process_state()
    # The processes of a model that is split over them decode every batch together.
    together = (getattr(model, "tp_size", None) or 1) > 1
    described = {
        name: {"generate": kwargs, "settings": configs[name].sampler_config.to_dict()} for name, kwargs in named.items()
    }
    identity = {
        "model": describe_model(model),
        "task": task.describe(),
        "samplers": described,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "generate": generate_kwargs,
        "versions": versions(),
    }
    batches = batched(task.samples, batch_size)
    journal = None if output is None else Journal(output, identity, overwrite)
    state.wait_for_everyone()
    if journal is not None and state.is_main_process:
        journal.begin()
    state.wait_for_everyone()
    done = {record["batch"]: record for record in (journal.read() if journal else [])}
    state.wait_for_everyone()
    writes = journal is not None and (state.is_main_process or not together)
    if writes:
        journal.open(state.process_index)
    pending = [number for number in range(len(batches)) if number not in done]
    shares = [pending] if together else [pending[rank :: state.num_processes] for rank in range(state.num_processes)]
    mine = shares[0 if together else state.process_index]
    if mine:
        for kwargs in named.values():  # the first call of a process pays for lazy initialisation
            call = common | {"max_new_tokens": min(WARM_UP_TOKENS, max_new_tokens)}
            run_batch(model, tokenizer, batches[mine[0]], kwargs | call, seed)
    records = []
    shown = progress and state.is_main_process
    for number in tqdm(mine, desc="batches", disable=not (shown and mine)):
        runs = {
            name: run_batch(model, tokenizer, batches[number], kwargs | common, seed) for name, kwargs in named.items()
        }
        records.append({"batch": number, "runs": runs})
        if writes:
            journal.append(records[-1])
    if writes:
        journal.close()
    # A batch has a number, so it counts once, whoever measured it.
    done |= {record["batch"]: record for record in gather_object(records)}
    settings = identity | {
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
        "processes": 1 if together else state.num_processes,
    }
    result = Evaluation(task, settings, [done[number]["runs"] for number in range(len(batches))])
    if journal is not None and state.is_main_process:
        result.save(journal.folder)
    return result


def process_state() -> PartialState:
    """Which of how many processes this is. accelerate asks to be told that there is no accelerator; each process would
    take itself for the only one otherwise."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu)


def check_prompts(model, tokenizer, task: Task, max_new_tokens: int) -> None:
    """Refuse a tokenizer that cannot make batches, and prompts that leave no room for an output."""
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "left":
        raise ValueError(
            "The tokenizer must pad on the left: set tokenizer.padding_side = 'left', and tokenizer.pad_token = "
            "tokenizer.eos_token where it has no pad token."
        )
    room = model.config.max_position_embeddings - max_new_tokens
    lengths = list(map(len, tokenizer([sample.prompt for sample in task.samples]).input_ids))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > room:
        raise ValueError(
            f"Sample {task.samples[longest].index} of {task.name} has {lengths[longest]} tokens; with "
            f"max_new_tokens={max_new_tokens} the model's context of {model.config.max_position_embeddings} has room "
            f"for {max(room, 0)}: use fewer new tokens, or shorter prompts."
        )


def run_batch(model, tokenizer, samples: tuple[Sample, ...], kwargs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Decode some samples together.

    Args:
        kwargs: of `generate()`.
        seed: sample i is decoded with seed + i.

    Returns:
        texts: the outputs.
        tokens: ids of each output, the end token among them where there is one.
        seconds: wall clock of the call.
        core_passes: core calls while decoding, over all rows at once; the prompts' own passes are not counted.
        recurrences: the same, counted once for every position in the call that a row still needed.
        spent: with `return_trace`, recurrences and exit value of each token.
    """
    inputs = tokenizer([sample.prompt for sample in samples], return_tensors="pt", padding=True).to(model.device)
    seeds = [seed + sample.index for sample in samples]
    helper = {"tokenizer": tokenizer} if "stop_strings" in kwargs else {}
    began = time.perf_counter()
    output = model.generate(**inputs, seed=seeds, **kwargs, **helper, return_dict_in_generate=True)
    new = output.sequences[:, inputs.input_ids.shape[1] :].tolist()
    seconds = time.perf_counter() - began
    stats = getattr(output, "stats", None)
    if stats is not None:
        tokens = [ids[:count] for ids, count in zip(new, stats.tokens_committed, strict=True)]
        core_passes, recurrences = stats.core_passes, stats.positions_refined
    else:
        config = model.decoding_config(**kwargs)
        tokens = [until_the_end(ids, config) for ids in new]
        steps = config.sampler_config.num_steps
        core_passes = steps * (max(map(len, tokens)) - 1)
        recurrences = steps * sum(len(ids) - 1 for ids in tokens)
    record = {
        "texts": tokenizer.batch_decode(tokens, skip_special_tokens=True),
        "tokens": tokens,
        "seconds": seconds,
        "core_passes": core_passes,
        "recurrences": recurrences,
    }
    if getattr(output, "trace", None) is not None:
        traced = map(output.trace.tokens, range(len(samples)))
        record["spent"] = [[(token.recurrences, token.exit_value) for token in row] for row in traced]
    return record


def until_the_end(ids: list[int], config: transformers.GenerationConfig) -> list[int]:
    """A row of transformers' own loop without the padding after its end."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    while len(ids) > 1 and ids[-1] == config.pad_token_id:
        ids = ids[:-1]
    return ids


def describe_model(model) -> dict[str, Any]:
    """What tells a model from another, as JSON values: its name, form, and a hash of the first weights of each tensor.

    A model that was trained on in its folder is another one.
    """
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        if isinstance(weights, DTensor):
            weights = weights.full_tensor()  # its processes must agree on what the model is
        few = [] if weights.device.type == "meta" else weights.detach().flatten()[:16].float().tolist()
        digest.update(repr((name, tuple(weights.shape), few)).encode())
    return {
        "name": model.config.name_or_path,
        "type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
    }


def describe_machine(model) -> str:
    """Processor, device and threads."""
    device = model.device
    accelerator = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.machine()}, {device.type}{accelerator}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Of what decodes."""
    return {
        "hf_diffusion_forcing": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
