"""transformers' own tests of models, run on ours: the classes that its source distribution has."""

import fnmatch
import unittest
import unittest.mock

import pytest
from transformers_suite.shipped import shipped
from transformers_suite.testers import ModelTester

from hf_diffusion_forcing.evaluation.compatibility.suites import NOT_APPLICABLE
from support import CLASSES

common = shipped("test_modeling_common")
configuration = shipped("test_configuration_common")
training = shipped("test_training_mixin")

SMALL = {
    "n_layers": 3,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 1,
    "n_layers_in_coda": 1,
}
DEPTH = {"mean_recurrence": 3, "mean_backprop_depth": 2}
CHANGES = {
    "huginn": {"layout": "huginn"} | SMALL | DEPTH,
    "llama": {"layout": "llama"} | DEPTH,
    "olmo": {"layout": "olmo"} | DEPTH,
    "parcae": {"value_embed_layers": [0, 2], "ve_gate_layers": [0, 2]} | SMALL | DEPTH,
}
"""What differs from a fixture's config: fewer layers where it has more weights than transformers allows in its tests,
and another depth where that is cheap."""

KINDS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
)
"""The lists in which transformers' tests look up what kind a class is, in the order of the classes above."""


def reason_to_skip(test: str, family: str) -> str | None:
    """Why a test of transformers is not for a family; None if it is."""
    for row in NOT_APPLICABLE:
        if fnmatch.fnmatch(test, row.test) and family in (row.families or (family,)):
            return row.reason
    return None


class Suite(common.ModelTesterMixin, training.TrainingTesterMixin):
    """transformers' tests of a family; those that do not apply are skipped by name, with the table's reason."""

    family = ""

    def setUp(self):
        if reason := reason_to_skip(self._testMethodName, self.family):
            self.skipTest(reason)
        _, *self.all_model_classes = CLASSES[self.family]
        # Depth and noise of a pass are drawn otherwise.
        self.model_tester = ModelTester(
            self.family, self.all_model_classes, training_depth=3, state_seed=0, **CHANGES.get(self.family, {})
        )
        for kind, model_class in zip(KINDS, self.all_model_classes, strict=True):
            self.enterContext(unittest.mock.patch.dict(getattr(common, kind), {self.family: model_class.__name__}))

    def assertRaises(self, expected, *args, **kwargs):
        """unittest's own; a tensor of another shape is a ValueError here, as is every other misfit of a checkpoint."""
        expected = (RuntimeError, ValueError) if expected is RuntimeError else expected
        return super().assertRaises(expected, *args, **kwargs)

    def test_model_outputs_equivalence(self):
        # It passes output_attentions=True.
        self.model_tester.config._attn_implementation = "eager"
        super().test_model_outputs_equivalence()

    # 28 loads of each class, and 300 steps of training.
    test_bc_torch_dtype = pytest.mark.full(common.ModelTesterMixin.test_bc_torch_dtype)
    test_training_overfit = pytest.mark.full(training.TrainingTesterMixin.test_training_overfit)

    def test_config(self):
        """transformers' `ConfigTester`."""
        tester = configuration.ConfigTester(self, config_class=type(self.model_tester.config), vocab_size=99)
        tester.run_common_tests()


@pytest.mark.full
class TestHuginn(Suite, unittest.TestCase):
    family = "huginn"


class TestLlama(Suite, unittest.TestCase):
    family = "llama"


@pytest.mark.full
class TestOlmo(Suite, unittest.TestCase):
    family = "olmo"


class TestOuro(Suite, unittest.TestCase):
    family = "ouro"


class TestParcae(Suite, unittest.TestCase):
    family = "parcae"

    def test_reverse_loading_mapping(self):
        # Only a model with a head has value embeddings under another name than its files.
        super().test_reverse_loading_mapping(skip_base_model=True)


@pytest.mark.parametrize("row", NOT_APPLICABLE, ids=lambda row: row.test)
def test_the_table_has_no_row_too_many(row):
    assert fnmatch.filter(dir(Suite), row.test)
