"""The command `serve`."""

import os
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from ..settings.presets import preset
from ..settings.sampler_config import merged
from .console import ModelArgument, exit_on_error, fail, load, say
from .options import Dtype
from .sampler_options import SPELLING_HELP, PlainSettings, chosen_sampler
from .seat_table import print_seats


@dataclass
class EngineOptions:
    """The options of the engine."""

    max_batch_size: Annotated[int, typer.Option(help="Rows that are decoded at a time.", min=1)] = 32
    max_batch_tokens: Annotated[
        str, typer.Option(help="Positions of one pass; auto measures the machine.", metavar="INTEGER|auto")
    ] = "auto"
    max_cache_bytes: Annotated[
        str, typer.Option(help="Bytes of keys and values; auto is half of the free memory.", metavar="INTEGER|auto")
    ] = "auto"
    max_queue_size: Annotated[int, typer.Option(help="Requests that may wait; 0 for no limit.", min=0)] = 1024
    prefix_reuse: Annotated[bool, typer.Option(help="Begin prompts with what others have left.")] = True

    @property
    def given(self) -> dict[str, Any]:
        """As keywords of `init_continuous_batching()`.

        Raises:
            ValueError: a number is none.
        """
        values = asdict(self)
        for name in ("max_batch_tokens", "max_cache_bytes"):
            if values[name] != "auto":
                if not values[name].isdigit():
                    raise ValueError(f"--{name.replace('_', '-')} {values[name]} must be an integer or auto.")
                values[name] = int(values[name])
        return values


@dataclass
class AccessOptions:
    """The options of who may ask, and how much."""

    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that clients must send. Better in the environment, where other users do not see it.",
            envvar="HF_DIFFUSION_FORCING_API_KEY",
            show_default=False,
        ),
    ] = None
    allow_anonymous: Annotated[bool, typer.Option(help="Listen to other machines without a key.")] = False
    max_new_tokens: Annotated[int | None, typer.Option(help="Most new tokens of a text.", min=1)] = None
    max_request_bytes: Annotated[int, typer.Option(help="Most bytes of a request's body.", min=1)] = 4 * 2**20
    request_timeout: Annotated[float, typer.Option(help="Most seconds from a request to its answer's end.")] = 600.0

    @property
    def limits(self) -> dict[str, Any]:
        """As arguments of `ServiceLimits`."""
        values = asdict(self)
        return {name: values[name] for name in ("max_new_tokens", "max_request_bytes", "request_timeout")}


def serve(
    settings: PlainSettings,
    engine: EngineOptions,
    access: AccessOptions,
    model: ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[
        int, typer.Option(help="Port to listen on. Processes of one launcher take this and the next ones.")
    ] = 8000,
    sampler: Annotated[
        str | None,
        typer.Option(help=f"{SPELLING_HELP} Default: the checkpoint's own, or diffusion_forcing if it has none."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for requests without one; see the guide.")] = None,
    prefill_chunk_size: Annotated[
        int | None,
        typer.Option(
            help="Positions of a prompt to read at once, 0 for all. Default: the checkpoint's own; otherwise 32 where "
            "prompts are reused in whole chunks only.",
            min=0,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device of the model: auto, cpu, cuda:0, ...")] = "auto",
    dtype: Dtype = "auto",
    enable_cors: Annotated[bool, typer.Option(help="Accept requests from web pages of any origin.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        typer.Option(help="Level of the server's messages. From info on, one line of JSON for each request."),
    ] = "info",
    plan: Annotated[bool, typer.Option("--plan", help="Print how many seats fit into memory, and exit.")] = False,
) -> None:
    """Answer OpenAI clients, many at once: chat completions, completions and responses, streamed or not."""
    if plan:
        print_seats(model, dtype)
        return
    kwargs = settings.given
    if sampler is not None or "sampler_preset" in kwargs:
        kwargs = chosen_sampler(sampler, settings)
    with exit_on_error():
        from ..serving.access import check_host
        from ..serving.server import ServiceLimits, choose_sampler, reuse_prompts
        from ..serving.server import serve as answer

        check_host(host, access.api_key, access.allow_anonymous)
        limits, batching = ServiceLimits(**access.limits), engine.given

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    port, device = port + rank, own_device(device, rank)
    network, tokenizer = load(model, device_map=device, dtype=dtype)
    name, chosen = kwargs.pop("sampler", None), kwargs.pop("sampler_preset", None)
    with exit_on_error():
        if chosen is not None:
            kwargs = merged(preset(chosen, name, network.config.model_type, kwargs.get("num_steps")), kwargs)
        choose_sampler(network, name, **kwargs | ({} if seed is None else {"seed": seed}))
        reuse_prompts(network, prefill_chunk_size)
    config, called = network.generation_config, model or "bundled"
    chunk = "" if config.prefill_chunk_size is None else f", prompts in chunks of {config.prefill_chunk_size},"
    say(
        Console(),
        f"Serving {called} with {config.sampler} {config.sampler_config}{chunk} at http://{host}:{port}/v1 "
        "(Ctrl+C to stop).",
    )
    with exit_on_error():
        answer(
            network,
            tokenizer,
            called,
            host,
            port,
            enable_cors,
            log_level,
            api_key=access.api_key,
            allow_anonymous=access.allow_anonymous,
            limits=limits,
            **batching,
        )


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
