"""The table that compares samplers in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def comparison_table(title: str, runs, problems=None, answers=None) -> Table:
    """One row per run, compared with the first: right answers (if known), tokens, core passes, time, equal tokens."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = ["sampler", "right", "tokens", "core\npasses", "seconds", "tokens\n/s", "speedup", "equal"]
    table.add_column(columns[0], overflow="fold", min_width=len("speculative_wavefront"))  # spellings may be long
    for name in columns[1:] if problems else columns[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    base = runs[0]
    for position, run in enumerate(runs):
        cells = [
            run.name,
            str(run.tokens),
            str(run.core_passes),
            f"{sum(run.seconds):.2f}",
            f"{run.tokens_per_second:.0f}",
            f"{run.tokens_per_second / base.tokens_per_second:.1f}x",
            percent(run.equal_share(base)),
        ]
        if problems:
            right = sum(p.is_solved_by(a) for p, a in zip(problems, answers[position], strict=True))
            cells.insert(1, f"{right}/{len(problems)}")
        table.add_row(*cells)
    return table
