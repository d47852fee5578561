"""Options that several commands share. A group of options is a dataclass; a command takes it as one parameter."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Annotated, Any, get_type_hints

import typer

from .console import exit_on_error, fail

MaxNewTokens = Annotated[int, typer.Option(help="Most new tokens per output.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Seed = Annotated[int, typer.Option(help="Seed of the latent states; sample or row i uses this plus i.")]

Dtype = Annotated[
    str,
    typer.Option(
        help="Type of the weights: float32, bfloat16 or float16; auto takes the saved one, or float32 on a CPU that is "
        "slow in the saved one."
    ),
]


class Pack(StrEnum):
    """How `pack_linear_weights` copies weights."""

    SAME = "same"
    FLOAT16 = "float16"


PackOption = Annotated[
    Pack | None,
    typer.Option(
        help="Also keep the linear weights in a layout that CPUs read faster: in the same type, or in float16."
    ),
]


def pack_weights(network: Any, pack: Pack | None) -> None:
    """Pack a model's weights as the option says.

    Raises:
        RuntimeError, ValueError: they cannot be packed here.
    """
    from ..packing import pack_linear_weights

    if pack is not None:
        import torch

        pack_linear_weights(network, dtype=torch.float16 if pack is Pack.FLOAT16 else None)


DEMO_SEED = 7
"""Seed of the held-out problems that commands use when no prompt is given."""


def grouped(command: Callable) -> Callable:
    """Replace each dataclass parameter of a command by one option per field."""
    signature = inspect.signature(command, eval_str=True)
    groups = {p.name: p.annotation for p in signature.parameters.values() if is_dataclass(p.annotation)}
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.name in groups:
            parameters += group_parameters(groups[parameter.name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def call(**values):
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        return command(**values, **made)

    del call.__wrapped__  # typer would read the annotations there
    call.__signature__ = signature.replace(parameters=parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def group_parameters(group: type) -> list[inspect.Parameter]:
    """A parameter for each field of a dataclass of options."""
    hints = get_type_hints(group, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name]) for f in fields(group)]


@dataclass
class TaskOptions:
    """The options that define a task."""

    dataset: Annotated[
        str,
        typer.Option(
            help="A bundled dataset (problems, worked, mental or python-source), a .json, .jsonl, .csv or .parquet "
            "file, a folder, or a name on the Hub."
        ),
    ] = "problems"
    config: Annotated[str | None, typer.Option(help="The dataset's configuration.")] = None
    split: Annotated[str | None, typer.Option(help="Optional if there is only one; test[:100] takes a part.")] = None
    count: Annotated[
        int | None,
        typer.Option(help="Use only the first samples; of a bundled dataset 100 by default, and 600 to fit."),
    ] = None
    prompt_template: Annotated[
        str | None, typer.Option(help=r"Column names in braces, as in 'Q: {question}\nA:'; {prompt} by default.")
    ] = None
    reference_column: Annotated[
        str | None, typer.Option(help="Column of the right answers; without it, outputs are not judged.")
    ] = None
    answer_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression whose first group is the answer; the whole text by default."),
    ] = None

    def task(self, held_out: bool = True, count: int = 100) -> Any:
        """The task (`hf_diffusion_forcing.evaluation.task.Task`).

        Args:
            held_out: whether a bundled dataset's prompts are those that its models were not trained on.
            count: samples of a bundled dataset, if no option says.

        Raises:
            typer.Exit: an option is wrong; the reason is printed.
        """
        from ..evaluation.task import BUNDLED, Task

        with exit_on_error():
            if self.dataset in BUNDLED:
                for name in ("config", "split", "prompt_template", "reference_column", "answer_pattern"):
                    if getattr(self, name) is not None:
                        raise ValueError(
                            f"--{name.replace('_', '-')} does not apply to {self.dataset}, which has its own prompts "
                            "and answers: leave it out."
                        )
                return Task.bundled(self.dataset, count if self.count is None else self.count, held_out)
            template = (self.prompt_template or "{prompt}").replace("\\n", "\n").replace("\\t", "\t")
            return Task.from_dataset(
                self.dataset,
                template,
                self.reference_column,
                self.answer_pattern,
                self.split,
                self.config,
                self.count,
            )


@dataclass
class DeviceOptions:
    """The device and precision for a task."""

    dtype: Dtype = "auto"
    device_map: Annotated[
        str | None,
        typer.Option(help="auto (over all devices), cpu, cuda:0, ...; each process's own device by default."),
    ] = None

    def load(self, model: str | None, **kwargs) -> tuple:
        """Load model and tokenizer on the device of this process.

        Args:
            kwargs: other keywords of the model's `from_pretrained`.

        Raises:
            typer.Exit: the checkpoint cannot be loaded, or several processes have a device map.
        """
        from ..evaluation.processes import process_state
        from .console import load

        state = process_state()
        if self.device_map is not None and state.num_processes > 1:
            raise fail(
                f"--device-map {self.device_map} works with one process, not {state.num_processes}, which have a "
                "device each: leave it out."
            )
        network, tokenizer = load(model, dtype=self.dtype, device_map=self.device_map or state.device, **kwargs)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return network, tokenizer


Stop = Annotated[list[str] | None, typer.Option(help=r"A text that ends an output, such as '\nQ:'. Repeatable.")]


def stop_strings(stop: list[str] | None) -> dict[str, list[str]]:
    """Keywords of `generate()` from --stop."""
    return {"stop_strings": [text.replace("\\n", "\n") for text in stop]} if stop else {}
