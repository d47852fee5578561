"""One HTML page about a call: the text, every tick of its decoding, figures and speed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..evaluation.runs import Run
from ..files import check_writable_file, write_file
from ..generation.trace import Trace
from ..version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedTokenizerBase

SHADES = 12
"""Steps of the colour scale for text."""


SETTLED_WORDS = {
    True: "settled: further recurrences are estimated not to change it",
    False: "not settled: further recurrences may change it",
}
"""What the page says of a token."""


def json_for_script(values: Any) -> Markup:
    """JSON that is safe inside a script element, whatever its strings contain."""
    text = json.dumps(values, allow_nan=False)  # escapes everything but ASCII, including U+2028 and U+2029
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def pieces(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], before: Sequence[int]) -> list[str]:
    """Each token's piece of the text; joined, the pieces are the decoded text.

    A token that ends inside a character has an empty piece; the token that completes it has the whole character.

    Args:
        tokens: ids after the prompt.
        before: the prompt's ids, because some tokenizers decode a token differently at the start of a text.
    """

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # The prompt's last tokens are enough context.
    context = list(before)[-4:]
    start = len(decode(context))
    whole = decode([*context, *tokens])[start:]
    shares, done = [], 0
    for count in range(1, len(tokens) + 1):
        text = decode([*context, *tokens[:count]])[start:]
        end = len(text) if count == len(tokens) or not text.endswith("\ufffd") else done
        end = max(end, done)
        shares.append(whole[done:end])
        done = end
    return shares


@dataclass
class Report:
    """The contents of the page.

    Attributes:
        name: name of the model.
        facts: facts about the model and the call, as pairs of a name and a text.
        tokenizer: the model's tokenizer.
        prompt_ids: the prompt.
        trace: the call's trace, of one row, with or without latents.
        runs: the runs to compare, the baseline first; empty for no table.
        measured: how, when and on what machine the runs were measured.
    """

    name: str
    facts: list[tuple[str, str]]
    tokenizer: PreTrainedTokenizerBase
    prompt_ids: list[int]
    trace: Trace
    runs: list[Run] = field(default_factory=list)
    measured: str = ""

    def html(self) -> str:
        """The page, which loads nothing from other files or addresses.

        Raises:
            ValueError: the trace is incomplete, or its text ended at the first token.
        """
        if self.trace.unrecorded:
            raise ValueError("The text is too long for a page: its trace is incomplete. Lower max_new_tokens.")
        tokens = self.tokens()
        figures, heat_map = self.figures([token["text"] for token in tokens])
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        source = files(__package__)
        script = source.joinpath("report.js").read_text()
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        data = {
            "tokens": tokens,
            "frames": list(self.frames()),
            "texts": self.draft_texts(),
            "shades": self.shades(),
            "most": max(token["recurrences"] for token in tokens),
            "heatMap": heat_map,
        }
        return environment.from_string(source.joinpath("report.html").read_text()).render(
            report=self,
            prompt=self.tokenizer.decode(self.prompt_ids, skip_special_tokens=False),
            tokens=tokens,
            settled=None if self.trace.settled is None else self.trace.settled[0],
            known=sum(token["settled"] is not None for token in tokens),
            settled_words=SETTLED_WORDS,
            data=json_for_script(data),
            ticks=len(data["frames"]) - 1,
            shades=data["shades"],
            most=data["most"],
            figures=figures,
            script=Markup(script),
            script_hash=digest,
            style=Markup(source.joinpath("report.css").read_text()),
            version=__version__,
        )

    def save(self, path: str | os.PathLike) -> Path:
        """Write the page; ValueError or OSError as `check_writable_file` and `html`."""
        path = check_writable_file(path)
        write_file(path, self.html())
        return path

    # --- what the page shows ---

    @property
    def waves(self) -> list:
        return [wave for wave in self.trace.of_row(0) if not wave.abandoned]

    def tokens(self) -> list[dict[str, Any]]:
        """The new tokens: text, recurrences, exit value, tick, whether it is a special token."""
        traced = self.trace.tokens(0)
        texts = pieces(self.tokenizer, [token.token for token in traced], self.prompt_ids)
        special = set(self.tokenizer.all_special_ids)
        return [
            {
                "text": text,
                "recurrences": token.recurrences,
                "value": token.exit_value,
                "settled": token.settled,
                "tick": token.tick,
                "position": token.position,
                "special": token.token in special,
                "shade": self.shade(token.recurrences, max(each.recurrences for each in traced)),
            }
            for token, text in zip(traced, texts, strict=True)
        ]

    def shade(self, recurrences: int, most: int) -> int:
        return round((SHADES - 1) * recurrences / max(most, 1))

    @staticmethod
    def shades() -> list[tuple[str, str]]:
        """Background colours from few recurrences to many, each with black or white as text colour."""
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        colours = [colormaps["YlGnBu"](0.03 + 0.92 * step / (SHADES - 1)) for step in range(SHADES)]
        return [(to_hex(colour), "#000" if _luminance(colour) > 0.18 else "#fff") for colour in colours]

    def frames(self) -> Iterable[dict[str, Any]]:
        """The state before the first tick and after each: the number of final tokens, the drafts, and their
        recurrences so far."""
        waves, final = self.waves, 1
        for number, after in enumerate([*waves, None]):
            drafts = [] if after is None else after.tokens[1:]
            frame = {"final": final, "drafts": drafts, "recurrences": [0] * len(drafts), "width": 0, "committed": 0}
            if number:
                wave = waves[number - 1]
                final += len(wave.committed)
                spent = dict(zip(range(wave.start, wave.start + wave.width), wave.recurrences, strict=True))
                # A draft is the prediction of the position before it.
                first = self.trace.starts[0] + final - 1
                recurrences = [spent.get(first + place, 0) for place in range(len(drafts))]
                frame |= {"final": final, "recurrences": recurrences, "tick": wave.tick}
                frame |= {"width": wave.width, "committed": len(wave.committed)}
            yield frame

    def draft_texts(self) -> dict[int, str]:
        """The text of every drafted id, decoded after the prompt's last token."""
        ids = {token for wave in self.waves for token in wave.tokens[1:]}
        return {token: pieces(self.tokenizer, [token], self.prompt_ids)[0] for token in sorted(ids)}

    def figures(self, labels: list[str]) -> tuple[list[dict[str, str]], dict[str, float]]:
        """The figures as data URLs with descriptions, and the place of the heat map's axes in its figure.

        The place is given as fractions of the figure: left, top, width and height.
        """
        from .convergence_figures import plot_convergence, plot_recurrences
        from .latents_figure import plot_latents
        from .wavefront_figure import plot_wavefront

        heat_map = plot_wavefront(self.trace, labels=labels)
        drawn: list[tuple[str, str, Figure]] = [
            ("Wavefront", "Ticks downwards, positions to the right; a dot is a committed position.", heat_map)
        ]
        if any(value for wave in self.waves for value in wave.exit_values):
            caption = "The exit criterion's value against recurrences, a line for each position."
            drawn.append(("Convergence", caption, plot_convergence(self.trace)))
        caption = "How many core recurrences were spent on each token; the first token comes from the prompt's pass."
        drawn.append(("Recurrences", caption, plot_recurrences(self.trace, 0)))
        if any(wave.latents is not None and wave.width for wave in self.waves):
            try:
                figure = plot_latents(self.trace)
            except ValueError:  # every position was committed in its first tick, so there are no paths
                pass
            else:
                caption = "Paths of the latent states in the two directions in which they vary most (PCA)."
                drawn.append(("Latent states", caption, figure))
        figures = [{"title": title, "caption": text, "address": _address(figure)} for title, text, figure in drawn]
        box = heat_map.axes[0].get_position()
        first, last = self.waves[0].tick, self.waves[-1].tick
        place = {"left": box.x0, "top": 1 - box.y1, "width": box.width, "height": box.height}
        return figures, place | {"first": first, "ticks": last - first + 1}


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of red, green and blue from 0 to 1, as in WCAG 2 contrast; 0.18 is midway."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _address(figure: Figure) -> str:
    """A figure as an SVG in a data URL: an image without scripts."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The font may lack a token's script: its label is then a box, but the page's text is right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
