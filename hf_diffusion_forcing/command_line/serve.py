"""The command `serve`."""

import os
from typing import Annotated

import typer
from rich.console import Console

from ..settings.presets import preset
from ..settings.sampler_config import merged
from .console import ModelArgument, exit_on_error, fail, load, say
from .options import Dtype, PackOption, pack_weights
from .sampler_options import SPELLING_HELP, PlainSettings, chosen_sampler
from .seat_table import print_seats
from .serve_options import AccessOptions, EngineOptions, ListenOptions


def serve(
    settings: PlainSettings,
    listen: ListenOptions,
    access: AccessOptions,
    engine: EngineOptions,
    model: ModelArgument = None,
    sampler: Annotated[
        str | None,
        typer.Option(help=f"{SPELLING_HELP} Default: the checkpoint's own, or diffusion_forcing if it has none."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for requests without one; see the guide.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model: auto, cpu, cuda:0, ...")] = "auto",
    dtype: Dtype = "auto",
    pack: PackOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print how many seats fit into memory, and exit.")] = False,
) -> None:
    """Answer OpenAI clients, many at once: chat completions, completions and responses, streamed or not."""
    if plan:
        print_seats(model, dtype)
        return
    kwargs = settings.given
    if sampler is not None or kwargs.keys() & {"sampler_preset", "lossless"}:
        kwargs = chosen_sampler(sampler, settings)
    with exit_on_error():
        from ..serving.access import check_host
        from ..serving.server import ServiceLimits, choose_sampler, reuse_prompts
        from ..serving.server import serve as answer

        check_host(listen.host, access.api_key, access.allow_anonymous)
        limits, batching = ServiceLimits(**access.limits), engine.given

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    port = listen.port + rank
    network, tokenizer = load(model, device_map=own_device(device, rank), dtype=dtype)
    name, chosen = kwargs.pop("sampler", None), kwargs.pop("sampler_preset", None)
    lossless = kwargs.pop("lossless", None)
    with exit_on_error():
        pack_weights(network, pack)
        if chosen is not None:
            model_type = network.config.model_type
            kwargs = merged(preset(chosen, name, model_type, kwargs.get("num_steps"), lossless), kwargs)
        choose_sampler(network, name, **kwargs | ({} if seed is None else {"seed": seed}))
        reuse_prompts(network, engine.prefill_chunk_size)
    config, called = network.generation_config, model or "bundled"
    chunk = "" if config.prefill_chunk_size is None else f", prompts in chunks of {config.prefill_chunk_size},"
    say(
        Console(),
        f"Serving {called} with {config.sampler} {config.sampler_config}{chunk} at http://{listen.host}:{port}/v1 "
        "(Ctrl+C to stop).",
    )
    guard = {"api_key": access.api_key, "allow_anonymous": access.allow_anonymous, "limits": limits}
    with exit_on_error():
        answer(network, tokenizer, called, listen.host, port, listen.enable_cors, listen.log_level, **guard, **batching)


def own_device(device: str, rank: int) -> str:
    """The device of one of several processes on a machine: each has its own accelerator.

    Args:
        device: the option; only "auto" is divided.
        rank: of the process, counted from 0.

    Raises:
        typer.Exit: there are fewer accelerators than processes; printed.
    """
    if device != "auto" or "LOCAL_RANK" not in os.environ:
        return device
    import torch

    if not torch.accelerator.is_available():
        return device
    if rank >= torch.accelerator.device_count():
        raise fail(f"Process {rank} has no accelerator: start {torch.accelerator.device_count()} processes at most.")
    return f"{torch.accelerator.current_accelerator().type}:{rank}"
