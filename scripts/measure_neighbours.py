"""Measure how many recurrences a position needs when right drafts on its left begin with it, and from which states.

    python scripts/measure_neighbours.py
    python scripts/measure_neighbours.py --part starts

Both trained checkpoints read held-out texts, written at full depth, in float32. The left part of a text has converged;
a block of the tokens behind it then begins at once, as if every draft were right. The part `decoded` is of
`generate()`, with the checkpoints' own start heads and without. Writes docs/benchmarks/neighbours.json and
neighbours.md; a part replaces only its own rows.
"""

from collections.abc import Callable, Iterator

import torch
from measure_lossless import prompts
from measure_settling import LEVELS, SAMPLERS, THRESHOLDS, chosen, level_cells, problem_domain, source_domain
from measured_parts import CHECKPOINTS, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.cache import Placement
from hf_diffusion_forcing.hooks.latent_criteria import latent_difference

DEPTH = 32
BLOCK = 16
"""Positions that begin at once."""
DISTANCES = (0, 1, 2, 4, 8, 15)
"""Of a position from the text that has converged."""
THRESHOLD = 0.03
"""A position has converged once its `latent_difference` stays below it (arXiv 2510.14961)."""
RIDGE = 1e-3

Start = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Initial states from the model's own ones, the injected embeddings, and the last state on the left of the block."""


class Reading:
    """A text that is read from left to right, every part at full depth.

    Args:
        model: the model.
        ids: int64 [1, length].
    """

    def __init__(self, model, ids: torch.Tensor):
        self.model, self.ids = model, ids
        self.cache = model.new_cache(1, "last", ids.shape[1])

    def begin(self, first: int, end: int) -> tuple[Placement, torch.Tensor, torch.Tensor]:
        """The placement, injected embeddings and initial states of positions `first` to `end - 1`."""
        positions = torch.arange(first, end)[None]
        at = self.cache.place(positions, start=first)
        e = self.model.embed(self.ids[:, first:end], at)
        return at, e, self.model.initialize_state(e, positions, torch.zeros_like(positions))

    def refine(
        self, at: Placement, e: torch.Tensor, s: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run all recurrences.

        Returns:
            The last states, and for each position the recurrences until it has converged, and until its readout is that
            of the last recurrence; int64 [n].
        """
        converged = read = torch.ones(e.shape[1], dtype=torch.int64)
        readouts = []
        for depth in range(DEPTH):
            before, s = s, self.model.recur(s, e, at, depth)
            converged = torch.where(latent_difference(s, before)[0] < THRESHOLD, converged, min(depth + 2, DEPTH))
            readouts.append(self.model.decode(s, at)[0].argmax(-1))
        for depth, readout in enumerate(readouts):
            read = torch.where(readout == readouts[-1], read, depth + 2)
        return s, converged, read


def texts_of(domain: str, count: int, room: int) -> tuple[object, list[tuple[int, torch.Tensor]]]:
    """A checkpoint, and the texts that it writes at full depth, with the length of each prompt."""
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS[domain], dtype=torch.float32, decoding_heads=False).eval()
    texts = []
    for ids in tqdm(prompts(domain, count), desc=f"{domain}: texts", leave=False):
        text = model.generate(ids, sampler="autoregressive", num_steps=DEPTH, seed=0, max_new_tokens=room)
        texts.append((ids.shape[1], text))
    return model, texts


def needed(model, texts: list[tuple[int, torch.Tensor]], start: Start) -> list[dict]:
    """Mean recurrences by distance from the text that has converged."""
    converged, read = [], []
    for prompt, ids in tqdm(texts, leave=False):
        for first in range(prompt, ids.shape[1] - BLOCK + 1, BLOCK):
            reading = Reading(model, ids)
            left, *_ = reading.refine(*reading.begin(0, first))
            at, e, s = reading.begin(first, first + BLOCK)
            _, *counts = reading.refine(at, e, start(s, e, left[:, -1:]))
            converged.append(counts[0])
            read.append(counts[1])
    means = [torch.stack(counts).double().mean(0) for counts in (converged, read)]
    return [
        {"distance": distance, "converged": means[0][distance].item(), "read": means[1][distance].item()}
        for distance in DISTANCES
    ]


def own(s: torch.Tensor, e: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """The model's own initial states."""
    return s


def neighbour(s: torch.Tensor, e: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """The last state on the left."""
    return left.expand_as(s)


class Predicted:
    """Initial states that a linear map predicts from the injected embedding and the state on the left.

    Args:
        model, texts: what it is fitted to by ridge regression: the last states of all positions.
    """

    def __init__(self, model, texts: list[tuple[int, torch.Tensor]]):
        inputs, outputs = [], []
        for _, ids in tqdm(texts, desc="fit", leave=False):
            reading = Reading(model, ids)
            at, e, s = reading.begin(0, ids.shape[1])
            s, *_ = reading.refine(at, e, s)
            inputs.append(self.features(e[:, 1:], s[:, :-1])[0])
            outputs.append(s[0, 1:])
        x, y = torch.cat(inputs).double(), torch.cat(outputs).double()
        penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        self.map = torch.linalg.solve(x.T @ x + penalty, x.T @ y).float()
        self.explained = 1 - ((y - x @ self.map.double()) ** 2).sum().item() / ((y - y.mean(0)) ** 2).sum().item()

    @staticmethod
    def features(e: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        return torch.cat([e, left, torch.ones_like(e[..., :1])], dim=-1)

    def __call__(self, s: torch.Tensor, e: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        """From left to right: each position takes the prediction of the one before it as the state on its left."""
        states = []
        for own_e in e.split(1, dim=1):
            left = self.features(own_e, left) @ self.map
            states.append(left)
        return torch.cat(states, dim=1)


@torch.no_grad()
def together_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the recurrences that a position needs by its distance from the text that has converged."""
    for domain in CHECKPOINTS:
        model, texts = texts_of(domain, count, room)
        for row in needed(model, texts, own):
            yield {"domain": domain} | row


@torch.no_grad()
def start_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the same for other initial states; the linear map is fitted to as many texts again, four times."""
    for domain in CHECKPOINTS:
        model, texts = texts_of(domain, 5 * count, room)
        predicted = Predicted(model, texts[count:])
        for name, start in (("own", own), ("left neighbour's", neighbour), ("predicted", predicted)):
            for row in needed(model, texts[:count], start):
                yield {"domain": domain, "start": name, "explained": predicted.explained} | row


def decoded_rows(count: int, room: int) -> Iterator[dict]:
    """Yield what decoding takes from the model's own initial states and from those of its start head.

    Args:
        room: not used; the texts have the lengths of `measure_settling`.
    """
    criterion = "latent_difference"
    for name, make in zip(CHECKPOINTS, (problem_domain, source_domain), strict=True):
        domain = make(count)
        with tqdm(desc=name, total=2 * len(SAMPLERS) * len(THRESHOLDS[criterion]), leave=False) as bar:
            for title, sampler in SAMPLERS.items():
                for start, learned in (("own", False), ("start head", True)):
                    found = chosen(domain, sampler | {"learned_start": learned}, criterion, bar, None)
                    yield {"domain": name, "sampler": title, "start": start, **found}


def by_distance(rows: list[dict], name: str) -> str:
    """The cells of a table's row."""
    found = {row["distance"]: row[name] for row in rows}
    return " | ".join(f"{found[distance]:.1f}" for distance in DISTANCES)


def head(first: str) -> list[str]:
    return [f"| {first} | {' | '.join(map(str, DISTANCES))} |", f"| --- | --- |{' ---: |' * len(DISTANCES)}"]


def together_page(part: dict) -> list[str]:
    lines = [
        "## Right drafts that begin together",
        "",
        f"{signature(part)} Mean recurrences of a position by its distance from text that has converged, in a block of "
        f"{BLOCK} positions that begin at once with right tokens: until its state has converged (its normalised latent "
        f"difference stays below {THRESHOLD}), and until its readout is the one of recurrence {DEPTH}. At distance 0 "
        "everything on the left has converged.",
        "",
        *head("text | until"),
    ]
    for domain in CHECKPOINTS:
        rows = [row for row in part["rows"] if row["domain"] == domain]
        for name, until in (("converged", "the state has converged"), ("read", "the readout stays")):
            lines.append(f"| {domain} | {until} | {by_distance(rows, name)} |")
    return lines


def starts_page(part: dict) -> list[str]:
    lines = [
        "## Other initial states",
        "",
        f"{signature(part)} Recurrences until a state has converged, as above, from other initial states. *Predicted* "
        "states are a linear map of the injected embedding and of the state on the left, fitted to the last states "
        "of other texts of the same model.",
        "",
        *head("text | initial state"),
    ]
    for domain in CHECKPOINTS:
        for name in dict.fromkeys(row["start"] for row in part["rows"]):
            rows = [row for row in part["rows"] if row["domain"] == domain and row["start"] == name]
            lines.append(f"| {domain} | {name} | {by_distance(rows, 'converged')} |")
    explained = {row["domain"]: row["explained"] for row in part["rows"]}
    told = ", ".join(f"{share:.1%} ({domain})" for domain, share in explained.items())
    return [*lines, "", f"Share of the last states' variance that the linear map explains: {told}."]


def decoded_page(part: dict) -> list[str]:
    levels = [f"at least {level:.0%}" for level in LEVELS]
    lines = [
        "## Decoding with a start head",
        "",
        f"{signature(part)} Recurrences and core passes per token, the share of tokens equal to those of recurrence "
        f"{DEPTH}, and the share of problems solved, in `generate()` without and with `learned_start=True`. First at "
        f"an `exit_threshold` of {THRESHOLD}, then at the loosest threshold of a list at which the given share of "
        "tokens is equal; it is chosen on one set of texts and reported on another.",
        "",
    ]
    columns = ["threshold", "recurrences", "core passes", "equal", "solved"]
    heading = ["text", "sampler", "initial state", *columns]
    for level in levels:
        heading += [f"{level}: threshold", *columns[1:]]
    lines += [f"| {' | '.join(heading)} |", "| --- | --- | --- |" + " ---: |" * (len(heading) - 3)]
    for row in part["rows"]:
        cells = level_cells({"threshold": THRESHOLD} | row["curve"][str(THRESHOLD)])
        for level in LEVELS:
            cells += level_cells(row["levels"].get(str(level)))
        lines.append(f"| {row['domain']} | {row['sampler']} | {row['start']} | {' | '.join(cells)} |")
    return lines


PARTS = {
    "together": (together_rows, together_page),
    "starts": (start_rows, starts_page),
    "decoded": (decoded_rows, decoded_page),
}


if __name__ == "__main__":
    measure_parts(
        "neighbours",
        "Positions that converge together",
        PARTS,
        count=12,
        counted="Texts of each kind.",
        max_new_tokens=128,
    )
