"""transformers' own test classes, as scripts/fetch_transformers_tests.py unpacks them."""

import importlib
import runpy
import sys
import warnings
from types import ModuleType

import pytest

from support import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "fetch_transformers_tests.py"))
PACKAGE = SCRIPT["PACKAGE"]
NOT_SHIPPED = {
    "exporters.test_export": {"ExportTesterMixin": object},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": {}},
}
"""Modules that the fetched ones import and that no distribution of transformers has, with what is imported of them:
the classes are empty, so their tests are not run."""


def shipped(module: str) -> ModuleType:
    """A module of transformers' tests; skips the tests that ask for it where it has not been fetched."""
    folder = SCRIPT["cache_folder"]()
    if not (folder / PACKAGE).exists():
        pytest.skip("run python scripts/fetch_transformers_tests.py first", allow_module_level=True)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    for name, contents in NOT_SHIPPED.items():
        parent = name.partition(".")[0]
        for path in (parent, name):
            sys.modules.setdefault(f"{PACKAGE}.{path}", ModuleType(f"{PACKAGE}.{path}"))
        vars(sys.modules[f"{PACKAGE}.{name}"]).update(contents)
    with warnings.catch_warnings():
        # Of marks that transformers' own configuration of pytest knows.
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return importlib.import_module(f"{PACKAGE}.{module}")
