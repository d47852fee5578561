"""The command `demo`, which also runs without a subcommand."""

import time

from rich.console import Console

from .comparison_table import comparison_table
from .console import load
from .options import DEMO_SEED

SHOWN, COMPARED = 2, 6
"""Problems to show live, and problems to time every sampler on."""


def demo() -> None:
    """Watch the bundled checkpoint decode held-out problems, then compare samplers; takes under a minute."""
    from ..evaluation.problems import problems
    from ..evaluation.runs import Run, compare

    console = Console()
    began = time.perf_counter()
    model, tokenizer = load(None)
    forcing = {
        "sampler": "diffusion_forcing",
        "wavefront": 32,
        "exit_threshold": 0.03,
        "inner_recurrence": 1,
        "seed": 0,
    }
    stream = problems(DEMO_SEED, held_out=True)
    chosen = [next(stream) for _ in range(COMPARED)]
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"A recurrent-depth model of {parameters / 1e6:.1f}M parameters, {model.config.mean_recurrence} recurrences "
        "per token, on problems it was not trained on.",
        highlight=False,
    )
    if console.is_terminal:
        console.print(
            "Yellow tokens are drafts, refined together; they become final once their latent states converge.\n"
        )
    for problem in [p for p in chosen if p.kind == "worked"][:SHOWN]:
        show_live(console, model, tokenizer, problem, **forcing)

    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen]
    runs = [
        Run("autoregressive", {"sampler": "autoregressive", "seed": 0}),
        Run("diffusion_forcing r'=4", forcing | {"inner_recurrence": 4}),
        Run("diffusion_forcing r'=1", forcing),
        Run("speculative_wavefront", {"sampler_preset": "lossless", "seed": 0}),
    ]
    with console.status("Comparing with autoregression ..."):
        compare(model, prompts, runs)
    answers = [tokenizer.batch_decode(run.sequences, skip_special_tokens=True) for run in runs]
    console.print(comparison_table("The same problems, the same model", runs, chosen, answers))
    console.print(
        "r' is the number of core passes per tick. speculative_wavefront always gives autoregression's text.",
        highlight=False,
    )
    console.print(f"Done in {time.perf_counter() - began:.0f} seconds.", highlight=False)


def show_live(console: Console, model, tokenizer, problem, **kwargs) -> None:
    """Print a problem and its answer; in a terminal, drafts appear in yellow while they are refined."""
    from transformers import TextDiffusionStreamer

    console.print(problem.prompt.removesuffix("A:").strip(), style="bold", highlight=False)
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    streamer = None
    if console.is_terminal:
        streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True, sleep_time=0.02, skip_special_tokens=True)
    ids = model.generate(**inputs, streamer=streamer, **kwargs)
    if streamer is None:
        text = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        console.print("A:" + text, highlight=False, soft_wrap=True)
    console.print()
