"""The families of models: the one list from which they are registered and exported. It imports nothing."""

FAMILIES = {
    "huginn_raven": "Raven",
    "ouro": "Ouro",
    "nanbeige": "Nanbeige",
    "parcae": "Parcae",
}
"""Of each family its `model_type`, which is its folder in `models/`, and what the names of its classes begin with."""

ADAPTED = {"hrm_text": "HrmText"}
"""The same of families whose models are transformers' own; here they have a config and a language model."""

CLASS_NAMES = {"ParcaeConfig": "parcae"}
"""Of families whose published config.json has no `model_type`: the `_class_name` it has, and the `model_type`."""

PARTS = ("Config", "Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
"""What the names of a family's public classes end with: the config, and the model without a head and with each."""

NAMES = (
    *(f"{name}{part}" for name in FAMILIES.values() for part in PARTS),
    *(f"{name}{part}" for name in ADAPTED.values() for part in ("Config", "ForCausalLM")),
)
"""The public names of all families."""
