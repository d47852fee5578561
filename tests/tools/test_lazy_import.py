"""Importing the package costs nothing, and still registers the families, whoever imports what first."""

import ast
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import hf_diffusion_forcing
from hf_diffusion_forcing.lazy_registration import STAND_INS, AfterImport
from support import FAMILIES, HUGINN_MINI

PACKAGE = Path(hf_diffusion_forcing.__file__).parent


def python(code):
    """What a fresh process prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_is_light():
    """Neither torch nor transformers; names are there before they are used, and unknown ones are refused."""
    assert (
        python("""
import sys
import hf_diffusion_forcing
assert not {"torch", "transformers", "yaml"} & set(sys.modules)
assert set(hf_diffusion_forcing.__all__) <= set(dir(hf_diffusion_forcing))
try:
    hf_diffusion_forcing.RavenConfiguration
except AttributeError as error:
    print(error)
""")
        == "module 'hf_diffusion_forcing' has no attribute 'RavenConfiguration'"
    )


def test_every_name_is_there_and_type_checkers_see_it():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    seen = {
        name.name: node.level * "." + node.module
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    eager = {"__version__": ".version", "bundled_checkpoint": ".checkpoints"}
    assert seen == hf_diffusion_forcing.MODULES | eager
    assert sorted(listed) == sorted(hf_diffusion_forcing.__all__) == sorted(seen)
    for name, module in seen.items():
        value = getattr(import_module(module, "hf_diffusion_forcing"), name)
        assert getattr(hf_diffusion_forcing, name) is value


def test_every_family_has_a_stand_in_of_its_config():
    ours = {t: c.__name__ for t, c in CONFIG_MAPPING._extra_content.items() if c.__module__.startswith("hf_diffusion")}
    assert {stand_in.model_type: stand_in.__name__ for stand_in in STAND_INS} == ours


def test_extras_are_imported_when_they_are_needed():
    """The commands and every public name do without them."""
    python("""
import sys
sys.modules.update(datasets=None, evaluate=None, rapidfuzz=None)
import hf_diffusion_forcing.command_line.app
import hf_diffusion_forcing.visualization
from hf_diffusion_forcing import *
assert "matplotlib" not in sys.modules
hf_diffusion_forcing.visualization.plot_wavefront
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
""")


LOAD = f"""
path = {str(HUGINN_MINI)!r}
model = AutoModelForCausalLM.from_pretrained(path)
print(type(model).__name__, isinstance(model, hf_diffusion_forcing.RecurrentDepthGenerationMixin))
"""


@pytest.mark.parametrize(
    "imports",
    [
        pytest.param(
            "import hf_diffusion_forcing\nfrom transformers import AutoModelForCausalLM", marks=pytest.mark.full
        ),
        "from transformers import AutoModelForCausalLM\nimport hf_diffusion_forcing",
        # transformers imports the module of AutoConfig in the middle of this one, which ours need as a whole.
        "import hf_diffusion_forcing\nfrom transformers import GenerationMixin, AutoModelForCausalLM",
        pytest.param(
            "import hf_diffusion_forcing.models\nfrom transformers import AutoModelForCausalLM", marks=pytest.mark.full
        ),
    ],
)
def test_a_checkpoint_loads_in_either_order(imports):
    assert python(imports + LOAD) == "RavenForCausalLM True"


def test_other_ways_to_a_family():
    """Configs by type, a config alone, a model from a config of the package, and a pipeline."""
    assert python(f"""
import hf_diffusion_forcing
from transformers import AutoConfig, AutoModelForCausalLM, pipeline
assert not [name for name in __import__("sys").modules if name.startswith("hf_diffusion_forcing.models")]
print(AutoConfig.for_model("ouro", num_hidden_layers=2).num_hidden_layers)
print(type(AutoConfig.from_pretrained({str(FAMILIES["ouro"])!r})) is hf_diffusion_forcing.OuroConfig)
config = hf_diffusion_forcing.RavenConfig.from_pretrained({str(HUGINN_MINI)!r})
print(type(AutoModelForCausalLM.from_config(config)) is hf_diffusion_forcing.RavenForCausalLM)
pipe = pipeline("text-generation", hf_diffusion_forcing.bundled_checkpoint())
print(len(pipe("Q: Start at 3 + 2. Last digit?\\nA:", max_new_tokens=2, sampler="diffusion_forcing", seed=0)))
""").splitlines() == ["2", "True", "True", "1"]


def test_threads_that_import_both_at_once():
    """(transformers' own packages come first: threads that import them at once find gaps, with or without us.)"""
    printed = python(f"""
import threading
import transformers.generation
import transformers.models.auto

barrier = threading.Barrier(4)
failures = []

def work(number):
    barrier.wait()
    try:
        if number % 2:
            import hf_diffusion_forcing
            hf_diffusion_forcing.RavenConfig
        from transformers import AutoConfig
        import hf_diffusion_forcing
        assert type(AutoConfig.from_pretrained({str(HUGINN_MINI)!r})).__name__ == "RavenConfig"
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(failures)
""")
    assert printed == "[]"


# --- the hook itself ---


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A module that nobody has imported, the finder that waits for it, and what the finder was called with."""
    (tmp_path / "watched_module.py").write_text("import json\nVALUE = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "watched_module", raising=False)
    seen = []
    finder = AfterImport("watched_module", lambda module: seen.append((module.__name__, module.VALUE)))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    yield tmp_path / "watched_module.py", finder, seen
    sys.modules.pop("watched_module", None)


def test_it_is_called_once_when_the_module_is_whole(watched):
    _, finder, seen = watched
    import xml.dom.minidom  # noqa: F401  (another module is none of its business)

    assert seen == []
    module = import_module("watched_module")
    assert seen == [("watched_module", 4)] and finder not in sys.meta_path
    assert type(module.__loader__) is type(module.__spec__.loader) is type(pytest.__loader__)
    import_module("watched_module")
    assert len(seen) == 1


def test_an_import_that_fails_is_waited_for_again(watched):
    path, finder, seen = watched
    whole = path.read_text()
    path.write_text("raise RuntimeError('not today')\n")
    with pytest.raises(RuntimeError, match="not today"):
        import_module("watched_module")
    assert seen == [] and finder in sys.meta_path
    path.write_text(whole + "\n")
    import_module("watched_module")
    assert seen == [("watched_module", 4)]


def test_two_hooks_of_one_module(watched):
    _, _, seen = watched
    others = []
    sys.meta_path.insert(0, AfterImport("watched_module", lambda module: others.append(module.VALUE)))
    module = import_module("watched_module")
    assert seen == [("watched_module", 4)] and others == [4]
    assert type(module.__loader__) is type(pytest.__loader__)


def test_threads_wait_for_the_module(watched):
    _, _, seen = watched
    values = []
    threads = [threading.Thread(target=lambda: values.append(import_module("watched_module").VALUE)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [4] * 8 and len(seen) == 1
