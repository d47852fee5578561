"""Exit criteria, latent processors, the `Refinement` they see, and draft sources.

Importing these modules registers their hooks.
"""

from . import draft_source, latent_criteria, latent_processors, learned_criterion, logits_criteria, settling

__all__ = ["draft_source", "latent_criteria", "latent_processors", "learned_criterion", "logits_criteria", "settling"]
