"""Exit criteria, latent processors, and the `Refinement` they see.

Importing these modules registers their hooks.
"""

from . import latent_criteria, latent_processors, logits_criteria, settling

__all__ = ["latent_criteria", "latent_processors", "logits_criteria", "settling"]
