"""Pages and plots of the measurements of scripts/benchmark.py."""

from pathlib import Path

from matplotlib.figure import Figure


def draw(record: dict, path: Path) -> None:
    """Draw one panel per table: decoding speed over the baseline, median and range over calls."""
    tables = record["tables"]
    height = 0.6 + sum(0.9 + 0.3 * len(each["rows"]) for each in tables)
    ratios = [len(each["rows"]) + 2 for each in tables]
    figure = Figure(figsize=(8, height))
    panels = figure.subplots(len(tables), 1, squeeze=False, height_ratios=ratios)
    for axes, each in zip(panels[:, 0], tables, strict=True):
        rows = each["rows"][::-1]
        speeds = [row["speedup"] for row in rows]
        low = [row["speedup"] - row["speedup_range"][0] for row in rows]
        high = [row["speedup_range"][1] - row["speedup"] for row in rows]
        axes.barh(
            [row["sampler"] for row in rows], speeds, xerr=(low, high), color="#4c78a8", ecolor="#333333", capsize=2
        )
        axes.set_title(f"{each['title']}, {each['parameters'] / 1e6:.0f}M parameters", fontsize=10, loc="left")
        axes.set_xlabel("decoding speed over the baseline", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


COLUMNS = {
    "sampler": "sampler",
    "quality": "quality",
    "tokens_per_second": "tokens/s",
    "speedup": "decoding",
    "speedup_end_to_end": "end to end",
    "first_token_speedup": "first token",
    "core_passes_per_token": "core passes a token",
    "positions_per_core_pass": "positions",
    "equal_share": "equal tokens",
    "ms_per_tick": "ms a tick",
    "predicted_ms": "predicted ms",
    "tick_over_ideal": "of limit",
    "kv_bytes": "KV",
}


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key] for key in columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in rows:
        low, high = row["speedup_range"]
        cells = {
            "sampler": row["sampler"],
            "quality": row.get("quality", ""),
            "tokens_per_second": f"{row['tokens_per_second']:.1f}",
            "speedup": f"{row['speedup']:.2f}x ({low:.2f} to {high:.2f})",
            "speedup_end_to_end": f"{row['speedup_end_to_end']:.2f}x",
            "first_token_speedup": f"{row['first_token_speedup']:.2f}x",
            "core_passes_per_token": f"{row['core_passes_per_token']:.2f}",
            "positions_per_core_pass": f"{row['positions_per_core_pass']:.1f}",
            "equal_share": "" if row["equal_share"] is None else f"{100 * row['equal_share']:.1f} %",
            "ms_per_tick": f"{row['ms_per_tick']:.1f}",
            "predicted_ms": f"{row.get('predicted_ms', 0):.1f}",
            "tick_over_ideal": f"{100 / row['tick_over_ideal']:.0f} %",
            "kv_bytes": f"{row['kv_bytes'] / 1e6:.1f} MB",
        }
        lines.append("| " + " | ".join(cells[key] for key in columns) + " |")
    return "\n".join(lines)


def page(record: dict, image: str) -> str:
    """The record as Markdown."""
    lines = [
        f"# {record['title']}",
        "",
        f"{record['dtype']}, {record['machine']}, {record['date']}; `{record['command']}`. {record['prompts']} "
        f"prompts, {record['repeats']} repeats, batch 1 unless said, interleaved. Speeds are medians over calls, "
        f"each against {record['base_tokens']} tokens of autoregression at r = 32 (in the batch sweep: batch 1) made "
        "just before it; lowest and highest in brackets. *Positions* are those of a core pass. *Of limit* is the time "
        "it takes to read the linear weights of all passes once each, over the time taken; the rate is that of the "
        "model's own linear layers with one position, measured just before each call. Peak memory of the process "
        f"{record['peak_bytes'] / 1e9:.1f} GB.",
        "",
        f"![Decoding speeds]({image})",
    ]
    for each in record["tables"]:
        about = f"{each['parameters'] / 1e6:.0f}M parameters; linear layers read {each['bandwidth'] / 1e9:.1f} GB/s."
        if "repeats" in each:
            about += f" Repeats: {each['repeats']}."
        lines += ["", f"## {each['title']}", "", about, "", table(each["rows"])]
    return "\n".join(lines) + "\n"


def report(record: dict, name: str, docs: Path) -> str:
    """Write a record's page and plot; returns the page."""
    (docs / "images").mkdir(exist_ok=True)
    draw(record, docs / "images" / f"{name}.png")
    text = page(record, f"../images/{name}.png")
    (docs / "benchmarks" / f"{name}.md").write_text(text)
    return text
