"""Runs `import hf_diffusion_forcing` when this checkpoint is loaded with `trust_remote_code=True`.

Needs the Python package `hf-diffusion-forcing`.
"""

from transformers import AutoConfig

import hf_diffusion_forcing  # noqa: F401  (registers the model families with the Auto classes)


class RecurrentDepthConfig:
    """The target of `auto_map`; it returns the config of the registered model family."""

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        """Called by `AutoConfig`. Does nothing: a registered class is copied into every folder a model is saved to."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Call `AutoConfig` again, which now knows the family."""
        return AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False, **kwargs)
