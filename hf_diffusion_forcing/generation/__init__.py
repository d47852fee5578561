"""The samplers, and the mixin through which `generate()` calls them."""
