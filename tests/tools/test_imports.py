"""Imports run one way: from the commands down to the settings."""

import ast
import subprocess
import sys
from pathlib import Path

import hf_diffusion_forcing

ROOT = Path(hf_diffusion_forcing.__file__).parent
LEVELS = [
    {"settings"},
    {"cache", "hooks"},
    {"models"},
    {"generation"},
    {"serving"},
    {"registration"},
    {"evaluation", "fitting", "hub", "jobs", "visualization"},
    {"command_line"},
]
LEAVES = {"checkpoints", "compat", "files", "packing", "randomness", "version"}
PATHS = [path for path in sorted(ROOT.rglob("*.py")) if "repository" not in path.parts and path.parent != ROOT]
PATHS.append(ROOT / "registration.py")


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def level(name: str) -> int:
    return next(index for index, rooms in enumerate(LEVELS) if name in rooms)


def imported_rooms(path: Path):
    """Rooms of the package that a module imports, by the statement's line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = path.relative_to(ROOT).parts[: -node.level]
            target = (*package, *(node.module or "").split(".")) if node.module else package
            for name in [target] if target else [(alias.name,) for alias in node.names]:
                yield node.lineno, room(name)


def test_imports_run_one_way():
    """Evaluation may use the hub's staging and the like: within a level there is no order."""
    wrong = []
    for path in PATHS:
        own = room(path.relative_to(ROOT).parts)
        for line, other in imported_rooms(path):
            known = other in LEAVES or any(other in rooms for rooms in LEVELS)
            if own not in LEAVES and other not in LEAVES and known and level(other) > level(own):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {other}")
    assert not wrong


def test_nothing_of_the_package_is_imported_for_types_alone():
    for path in PATHS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                hidden = [each for each in node.body if isinstance(each, ast.ImportFrom) and each.level]
                assert not hidden, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_settings_need_neither_torch_nor_transformers():
    """So that the help of a command can be made of them fast."""
    script = f"""
import sys, types
package = types.ModuleType("hf_diffusion_forcing")
package.__path__ = [{str(ROOT)!r}]
sys.modules["hf_diffusion_forcing"] = package
from hf_diffusion_forcing.settings import adaptive, autoregressive, diffusion_forcing, presets, registry
from hf_diffusion_forcing.settings import speculative_wavefront, validation
from hf_diffusion_forcing.settings.sampler_config import SAMPLER_CONFIGS, field_help
for config_class in SAMPLER_CONFIGS.values():
    for name in config_class.fields():
        assert field_help(config_class, name), name
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
