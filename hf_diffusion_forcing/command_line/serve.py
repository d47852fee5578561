"""The command `serve`."""

from typing import Annotated, Literal

import typer
from rich.console import Console

from ..settings.presets import preset
from ..settings.sampler_config import merged
from .console import ModelArgument, exit_on_error, load, say
from .options import Dtype
from .sampler_options import SPELLING_HELP, PlainSettings, chosen_sampler


def serve(
    settings: PlainSettings,
    model: ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    sampler: Annotated[
        str | None,
        typer.Option(help=f"{SPELLING_HELP} Default: the checkpoint's own, or diffusion_forcing if it has none."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for requests without one; random by default.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model: auto, cpu, cuda:0, ...")] = "auto",
    dtype: Dtype = "auto",
    enable_cors: Annotated[bool, typer.Option(help="Accept requests from web pages of any origin.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        typer.Option(help="Level of the server's own messages."),
    ] = "warning",
) -> None:
    """Answer OpenAI clients: chat completions, completions and responses, streamed or not."""
    kwargs = settings.given
    if sampler is not None or "sampler_preset" in kwargs:
        kwargs = chosen_sampler(sampler, settings)
    with exit_on_error():
        from ..serving.server import choose_sampler
        from ..serving.server import serve as answer

    network, tokenizer = load(model, device_map=device, dtype=dtype)
    name, chosen = kwargs.pop("sampler", None), kwargs.pop("sampler_preset", None)
    with exit_on_error():
        if chosen is not None:
            kwargs = merged(preset(chosen, name, network.config.model_type, kwargs.get("num_steps")), kwargs)
        choose_sampler(network, name, **kwargs | ({} if seed is None else {"seed": seed}))
    config, called = network.generation_config, model or "bundled"
    say(
        Console(),
        f"Serving {called} with {config.sampler} {config.sampler_config} at http://{host}:{port}/v1 (Ctrl+C to stop).",
    )
    answer(network, tokenizer, called, host, port, enable_cors, log_level)
