"""The command hf-diffusion-forcing."""
