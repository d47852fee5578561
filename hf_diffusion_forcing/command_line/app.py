"""The command `hf-diffusion-forcing`: its subcommands, one module each.

Commands import torch and transformers only when they run, so help and most errors need neither.
"""

import typer

from .benchmark import benchmark
from .calibrate import calibrate
from .compare import compare
from .convert import convert
from .demo import demo
from .diff import diff
from .estimate import estimate
from .evaluate import evaluate
from .export import export
from .fit import fit
from .generate import generate
from .inspect import inspect
from .lm_eval import lm_eval
from .map import map
from .options import grouped
from .push import push
from .report import report
from .serve import serve
from .tune import tune
from .verify import verify
from .widen import widen

app = typer.Typer(add_completion=False, help="Decode recurrent-depth language models by diffusion forcing.")

COMMANDS = (
    demo,
    generate,
    compare,
    serve,
    map,
    benchmark,
    estimate,
    verify,
    evaluate,
    diff,
    inspect,
    tune,
    calibrate,
    fit,
    report,
    export,
    push,
    convert,
    widen,
)
for command in COMMANDS:
    app.command()(grouped(command))
app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(lm_eval)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Without a subcommand: run `demo`."""
    if context.invoked_subcommand is None:
        demo()


if __name__ == "__main__":
    app()
