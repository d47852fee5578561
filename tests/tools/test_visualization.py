"""Figures of a trace show what is in it: every cell, every committed position, every token."""

import io
import sys

import pytest
import torch
from matplotlib.collections import LineCollection, PatchCollection, PathCollection
from matplotlib.figure import Figure

from hf_diffusion_forcing import visualization
from hf_diffusion_forcing.visualization import (
    plot_convergence,
    plot_latents,
    plot_recurrences,
    plot_wavefront,
    principal_components,
)
from support import left_pad
from support.matrix import cases

FIGURES = [plot_wavefront, plot_convergence, plot_recurrences, plot_latents]
ROWS = [[3, 1, 4], [1, 5, 9, 2, 6]]
SETTINGS = {
    "adaptive": {"exit_threshold": 0.1},
    "diffusion_forcing": {"exit_threshold": 0.1, "inner_recurrence": 1, "wavefront": 6},
    "speculative_wavefront": {"draft_depth": 1},
}


def traced(model, sampler="diffusion_forcing", rows=ROWS, **kwargs):
    call = {"max_new_tokens": 12, "seed": 3, "return_trace": "latents", "return_dict_in_generate": True}
    return model.generate(**left_pad(rows), sampler=sampler, **SETTINGS[sampler] | call | kwargs).trace


def only(axes, kind):
    return [each for each in axes.collections if type(each) is kind]


@pytest.mark.parametrize("row", cases([0, 1], keep=[1]))
@pytest.mark.parametrize("sampler", SETTINGS)
def test_the_wavefront_has_a_cell_for_every_position_of_every_tick(tiny, sampler, row):
    trace = traced(tiny, sampler)
    for color_by in (None, "recurrences"):
        axes = plot_wavefront(trace, row, color_by).axes[0]
        (cells,) = only(axes, PatchCollection)
        waves = trace.of_row(row)
        corners = {tuple(path.vertices.min(0) + 0.5) for path in cells.get_paths()}
        positions = [(w.start + place, w.tick) for w in waves for place in range(w.width)]
        assert corners == set(positions) and len(cells.get_paths()) == len(positions)
        marks = {each.get_label(): {tuple(p) for p in each.get_offsets()} for each in only(axes, PathCollection)}
        assert marks["committed"] == {(w.start + place, w.tick) for w in waves for place in range(len(w.committed))}
        assert len(marks.get("dropped", ())) == sum(len(w.discarded) for w in waves)
    assert cells.get_array().tolist() == [count for wave in waves for count in wave.recurrences]


def test_convergence_has_every_value_and_the_threshold(tiny):
    trace = traced(tiny)
    axes = plot_convergence(trace, 1).axes[0]
    drawn = [tuple(map(float, point)) for segment in only(axes, LineCollection)[0].get_segments() for point in segment]
    waves = trace.of_row(1)
    points = [pair for w in waves for pair in zip(w.recurrences, w.exit_values, strict=True) if pair[1]]
    torch.testing.assert_close(*map(torch.tensor, (sorted(drawn), sorted(points))))
    for segment in only(axes, LineCollection)[0].get_segments():
        assert (segment[1:, 0] > segment[:-1, 0]).all()  # a changed token begins another line
    assert [line.get_ydata()[0] for line in axes.lines] == [trace.threshold]
    assert "recurrences" in axes.get_xlabel() and "share of its norm" in axes.get_ylabel()


@pytest.mark.parametrize("sampler", SETTINGS)
def test_the_histogram_counts_every_token(tiny, sampler):
    trace = traced(tiny, sampler)
    for row, count in ((None, 22), (0, 11), (1, 11)):
        axes = plot_recurrences(trace, row).axes[0]
        assert sum(bar.get_height() for bar in axes.patches) == count
        rows = [0, 1] if row is None else [row]
        spent = [token.recurrences for each in rows for token in trace.tokens(each)[1:]]
        for bar in axes.patches:
            low, high = bar.get_x(), bar.get_x() + bar.get_width()
            assert bar.get_height() == sum(low < each < high for each in spent)


@pytest.mark.parametrize("sampler", SETTINGS)
def test_latents_have_a_path_for_every_position(tiny, sampler):
    trace = traced(tiny, sampler)
    left, right, _ = plot_latents(trace).axes
    (paths,) = only(left, LineCollection)
    counts = {}
    for wave in trace.of_row(0):
        for place in range(wave.width):
            counts[wave.start + place] = counts.get(wave.start + place, 0) + 1
    assert [len(path) for path in paths.get_segments()] == list(counts.values())
    for path in only(right, LineCollection)[0].get_segments():
        assert path[-1] == pytest.approx(only(right, LineCollection)[0].get_segments()[0][-1], abs=1e-5)
    few = plot_latents(trace, positions=list(counts)[:2]).axes[0]
    assert len(only(few, LineCollection)[0].get_segments()) == 2
    assert "% of the variance" in left.get_xlabel()


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_are_their_own_and_the_same_every_time(tiny, figure):
    trace = traced(tiny)
    drawn = []
    for _ in range(2):
        made = figure(trace)
        assert isinstance(made, Figure) and made.canvas.manager is None
        file = io.BytesIO()
        made.savefig(file, format="png")
        drawn.append(file.getvalue())
    assert drawn[0] == drawn[1] and drawn[0].startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules


def test_labels_are_text_and_no_formula(tiny):
    trace = traced(tiny)
    labels = ["$x^$", " ", "\n", "<script>", "a" * 40, "\\frac{", "&amp;", "%", "_", "{", "}", "é"]
    figure = plot_wavefront(trace, labels=labels)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown[:5] == ["$x^$", "\u2423", "\\n", "<script>", "a" * 15 + "\u2026"]
    file = io.BytesIO()
    figure.savefig(file, format="svg")
    assert b"<script>" not in file.getvalue()


def test_a_long_text_is_no_larger_than_a_page(tiny):
    trace = traced(tiny, max_new_tokens=100, rows=[[3, 1]], exit_threshold=0.0)
    figure = plot_wavefront(trace, labels=["a"] * 100)
    assert max(figure.get_size_inches()) < 25
    assert len(figure.axes[0].get_xticklabels()) < 100


@pytest.mark.parametrize("figure", FIGURES)
def test_what_cannot_be_drawn_is_refused(tiny, figure):
    with pytest.raises(TypeError, match="trace is a dict"):
        figure({})
    with pytest.raises(IndexError, match="row=2"):
        figure(traced(tiny), 2)
    with pytest.raises(ValueError, match="another prompt"):
        figure(traced(tiny, max_new_tokens=1))


def test_what_a_trace_does_not_hold_is_refused(tiny):
    lossless = traced(tiny, "speculative_wavefront")
    for draw in (plot_convergence, lambda trace: plot_wavefront(trace, color_by="exit_value")):
        with pytest.raises(ValueError, match="sampler='speculative_wavefront' has none"):
            draw(lossless)
    with pytest.raises(ValueError, match="exit_criterion='token_stability' has none"):
        plot_convergence(traced(tiny, exit_criterion="token_stability", exit_threshold=None))
    with pytest.raises(ValueError, match="return_trace='latents'"):
        plot_latents(traced(tiny, return_trace=True))
    with pytest.raises(ValueError, match="color_by='depth'"):
        plot_wavefront(lossless, color_by="depth")
    with pytest.raises(ValueError, match="no path"):
        plot_latents(lossless, positions=[])


def test_principal_components_find_the_plane_that_states_lie_in():
    generator = torch.manual_seed(0)
    plane = torch.linalg.qr(torch.randn(16, 2, generator=generator))[0].T
    places = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 1.0])
    states = places @ plane + torch.randn(16, generator=generator)
    found, shares = principal_components(states)
    assert shares.sum() == pytest.approx(1.0, abs=1e-5) and shares[0] > shares[1] > 0
    # Distances are kept, and the first direction is the widest.
    torch.testing.assert_close(torch.pdist(found), torch.pdist(places), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.var(0) / found.var(0).sum(), shares, rtol=1e-3, atol=1e-4)
    assert torch.equal(principal_components(states)[0], found)
    assert principal_components(torch.ones(4, 3))[1].tolist() == [0.0, 0.0]
    for bad in (torch.zeros(1, 5), torch.zeros(5), torch.full((4, 4), float("nan"))):
        with pytest.raises(ValueError, match="states"):
            principal_components(bad)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    """(tests/tools/test_lazy_import.py has when it is imported.)"""
    for name in [
        name for name in sys.modules if name.startswith(("hf_diffusion_forcing.visualization.", "matplotlib."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "hf-diffusion-forcing\[plot\]"'):
        visualization.plot_latents  # noqa: B018
