"""Cost curves on disk: each is measured once, for exactly the conditions it was measured under."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
import transformers
from huggingface_hub import constants

from hf_diffusion_forcing import RavenForCausalLM, pack_linear_weights
from hf_diffusion_forcing.files import whole_file
from hf_diffusion_forcing.generation import conditions, cost_curve, kept_curves
from hf_diffusion_forcing.generation.conditions import conditions_of
from hf_diffusion_forcing.generation.cost_curve import WIDTHS
from support import tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def measurements(monkeypatch):
    """The batches for which curves were measured so far."""
    batches, measure = [], cost_curve._measure

    def counted(model, ids):
        batches.append(len(ids))
        return measure(model, ids)

    monkeypatch.setattr(cost_curve, "_measure", counted)
    return batches


def as_a_new_process(model, batch=1):
    """The curve of a process that knows none."""
    cost_curve._KNOWN.clear()
    return cost_curve.cost_curve(model, batch, CPU)


def the_file(home) -> Path:
    (path,) = home.rglob("*.json")
    return path


def test_a_curve_is_measured_once_for_all_processes(tiny, home, measurements):
    curve = as_a_new_process(tiny)
    assert measurements == [1]
    assert as_a_new_process(tiny) == curve
    assert as_a_new_process(RavenForCausalLM(tiny_config()).eval()) == curve, "weights change no time"
    assert measurements == [1]
    as_a_new_process(tiny, batch=3)
    assert measurements == [1, 3] and len(list(home.rglob("*.json"))) == 2
    assert not list(home.rglob("*.partial")), "nothing half written"


def hold(known, taken: Event, curves) -> None:
    """What another process does that measures: take the lock, take its time, keep a curve."""
    with kept_curves.one_process_at_a_time(known):
        taken.set()
        time.sleep(0.5)
        kept_curves.write(known, curves)


def test_a_process_waits_for_one_that_measures_and_takes_its_curve(tiny, home, measurements):
    known, taken = conditions_of(tiny, 1, CPU), Event()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(hold, known, taken, {"core": NUMBERS, "ends": NUMBERS})
        assert taken.wait(10)
        curve = as_a_new_process(tiny)
        other.result()
    assert measurements == [] and curve.core == tuple(NUMBERS)


def test_ranks_that_compute_a_pass_together_do_not_wait_for_each_other(tiny, home, measurements):
    known, taken = conditions_of(tiny, 1, CPU), Event()
    tiny._tp_size = 2
    with ThreadPoolExecutor() as pool:
        other = pool.submit(hold, known, taken, {"core": NUMBERS, "ends": NUMBERS})
        assert taken.wait(10)
        curve = as_a_new_process(tiny)
        other.result()
    assert measurements == [1] and curve.core != tuple(NUMBERS)


def test_a_process_that_never_gets_the_lock_measures_and_says_so(tiny, home, measurements, warnings, monkeypatch):
    known, taken = conditions_of(tiny, 1, CPU), Event()
    monkeypatch.setattr(kept_curves, "PATIENCE", 0.05)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(hold, known, taken, {"core": NUMBERS, "ends": NUMBERS})
        assert taken.wait(10)
        as_a_new_process(tiny)
        other.result()
    assert measurements == [1] and "without a lock" in warnings.text


def test_two_processes_may_write_the_same_file(tmp_path):
    path = tmp_path / "curve.json"
    script = "import sys; from hf_diffusion_forcing.files import write_file; write_file(sys.argv[1], 'other')"
    with whole_file(path) as partial:
        partial.write_text("mine")
        subprocess.run([sys.executable, "-c", script, str(path)], check=True)
        assert path.read_text() == "other"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


NUMBERS = [1.0] * len(WIDTHS)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: "",
        lambda stored: json.dumps(stored)[:-20],
        lambda stored: "\x00\x01",
        lambda stored: "[]",
        lambda stored: json.dumps(stored | {"conditions": stored["conditions"] | {"threads": 999}}),
        lambda stored: json.dumps({name: value for name, value in stored.items() if name != "ends"}),
        lambda stored: json.dumps(stored | {"core": NUMBERS[1:]}),
        lambda stored: json.dumps(stored | {"core": dict(enumerate(NUMBERS))}),
        lambda stored: json.dumps(stored | {"ends": [*NUMBERS[1:], float("nan")]}),
        lambda stored: json.dumps(stored | {"ends": [*NUMBERS[1:], 0]}),
        lambda stored: json.dumps(stored | {"ends": [*NUMBERS[1:], -1.0]}),
        lambda stored: json.dumps(stored | {"ends": [*NUMBERS[1:], "1.0"]}),
        lambda stored: json.dumps(stored | {"ends": [*NUMBERS[1:], True]}),
    ],
)
def test_a_damaged_file_is_measured_anew(tiny, home, measurements, change):
    as_a_new_process(tiny)
    path = the_file(home)
    path.write_text(change(json.loads(path.read_text())))
    curve = as_a_new_process(tiny)
    assert measurements == [1, 1] and as_a_new_process(tiny) == curve and measurements == [1, 1]
    stored = json.loads(the_file(home).read_text())
    assert tuple(stored["core"]) == curve.core and tuple(stored["ends"]) == curve.ends


def test_a_file_that_is_valid_is_believed(tiny, home, measurements):
    as_a_new_process(tiny)
    path = the_file(home)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"core": list(range(1, 8)), "ends": NUMBERS}))
    assert as_a_new_process(tiny).seconds_per_tick(2, 3) == 7 and measurements == [1]


def changed(model, **patches):
    """The conditions with functions of torch or of the module replaced."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            patch.setattr(torch if hasattr(torch, name) else conditions, name, value)
        return conditions_of(model, 1, CPU)


def test_everything_that_changes_the_time_changes_the_file(tiny):
    known = conditions_of(tiny, 1, CPU)
    assert json.loads(json.dumps(known)) == known
    others = [
        conditions_of(tiny, 2, CPU),
        changed(tiny, get_num_threads=lambda: 63),
        changed(tiny, __version__="1.0"),
        changed(tiny, processor_name=lambda: "another"),
        conditions_of(RavenForCausalLM(tiny_config()).to(torch.bfloat16), 1, CPU),
        conditions_of(RavenForCausalLM(tiny_config(n_layers_in_coda=2)), 1, CPU),
        conditions_of(RavenForCausalLM(tiny_config(n_heads=4)), 1, CPU),
        conditions_of(RavenForCausalLM._from_config(tiny_config(), attn_implementation="eager"), 1, CPU),
        conditions_of(pack_linear_weights(RavenForCausalLM(tiny_config()).eval()), 1, CPU),
        changed(tiny, packed_dtypes=lambda model: ["torch.float16"]),
    ]
    for module in (conditions, transformers):  # this package's version, and transformers'
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "__version__", "0")
            others.append(conditions_of(tiny, 1, CPU))
    with torch.autocast("cpu", torch.bfloat16):
        others.append(conditions_of(tiny, 1, CPU))
    paths = {kept_curves.path_of(each) for each in [known, *others]}
    assert len(paths) == 1 + len(others)
    assert kept_curves.path_of(conditions_of(tiny, 1, CPU)) in paths


def test_a_cache_that_cannot_be_written_is_said_and_no_error(tiny, home, measurements, warnings):
    home.write_text("a file, where the folder should be")
    curve = as_a_new_process(tiny)
    assert min(*curve.core, *curve.ends) > 0
    assert "HF_HOME" in warnings.text and str(home) in warnings.text
    as_a_new_process(tiny)
    assert measurements == [1, 1]


def test_the_folder_is_that_of_hf_home(tmp_path):
    script = "from hf_diffusion_forcing.generation.kept_curves import folder; print(folder())"
    told = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"HF_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert told.stdout.strip() == str(tmp_path / "hf_diffusion_forcing" / "cost_curves"), told.stderr


def test_tests_leave_the_users_cache_alone():
    """Neither this process nor those it starts write there."""
    assert Path(os.environ["HF_HOME"]) == Path(constants.HF_HOME) and "hf-home-of-tests" in constants.HF_HOME
