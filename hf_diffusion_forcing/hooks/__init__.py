"""Exit criteria and latent processors, and what they see of a tick."""

# Each registers its hooks' names.
from . import latent_criteria, latent_processors, logits_criteria

__all__ = ["latent_criteria", "latent_processors", "logits_criteria"]
