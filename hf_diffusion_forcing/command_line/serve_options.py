"""The options of the command `serve`."""

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer


@dataclass
class ListenOptions:
    """The options of where to listen and what to say."""

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost"
    port: Annotated[
        int, typer.Option(help="Port to listen on. Processes of one launcher take this and the next ones.")
    ] = 8000
    enable_cors: Annotated[bool, typer.Option(help="Accept requests from web pages of any origin.")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        typer.Option(help="Level of the server's messages. From info on, one line of JSON for each request."),
    ] = "info"


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
    prefill_chunk_size: Annotated[
        int | None,
        typer.Option(
            help="Positions of a prompt to read at once, 0 for all. Default: the checkpoint's own; otherwise 32 where "
            "prompts are reused in whole chunks only.",
            min=0,
        ),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """As keywords of `init_continuous_batching()`.

        Raises:
            ValueError: a number is none.
        """
        values = asdict(self)
        del values["prefill_chunk_size"]
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
