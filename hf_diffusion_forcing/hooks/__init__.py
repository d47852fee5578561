"""Exit criteria and latent processors, and what they see of a tick."""
