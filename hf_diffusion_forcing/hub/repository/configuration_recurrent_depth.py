"""Stands in for `import hf_diffusion_forcing` where this checkpoint is loaded with `trust_remote_code=True`.

Needs the Python package `hf-diffusion-forcing`.
"""

from transformers import AutoConfig

import hf_diffusion_forcing  # noqa: F401  (registers the model families with the Auto classes)


class RecurrentDepthConfig:
    """Where `AutoConfig` arrives by `auto_map`; it leaves with the config of the registered model family."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """Called by `AutoConfig`. Registered, a class has its file copied into whatever folder a model is saved to."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """`AutoConfig` once more, now that it knows the family."""
        return AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **kwargs)
