"""Samplers, and the mixin that puts them behind `generate()`."""
