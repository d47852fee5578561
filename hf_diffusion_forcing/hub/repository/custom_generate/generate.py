"""Decode a recurrent-depth model by diffusion forcing: a `custom_generate` method of transformers.

Needs the Python package `hf-diffusion-forcing`.
"""

from hf_diffusion_forcing import RecurrentDepthGenerationMixin, SamplerConfig


def generate(inputs=None, generation_config=None, *args, model, **kwargs):
    """`model.generate()` with `sampler="diffusion_forcing"`, unless the call names another sampler.

    Args:
        model: a recurrent-depth model, loaded with the package's native code.
        inputs, generation_config, args, kwargs: everything `generate()` takes, including the sampler's settings.

    Raises:
        TypeError: the model is of another kind.
    """
    if not isinstance(model, RecurrentDepthGenerationMixin):
        raise TypeError(
            f"custom_generate needs a recurrent-depth model; this is a {type(model).__module__}."
            f"{type(model).__qualname__}. If its checkpoint is recurrent-depth, `import hf_diffusion_forcing` before "
            "loading it, so that it loads with native code; otherwise leave out custom_generate."
        )
    # If the model was loaded with trust_remote_code from this repository, model.generate is this function, and the
    # model's own generation config chooses the sampler.
    named = (
        "generate" in vars(model)
        or any(kwargs.get(name) is not None for name in ("sampler", "sampler_preset", "lossless"))
        or any(getattr(generation_config, name, None) is not None for name in ("sampler", "sampler_preset", "lossless"))
        or isinstance(kwargs.get("sampler_config"), SamplerConfig)
        or isinstance(getattr(generation_config, "sampler_config", None), SamplerConfig)
    )
    if not named:
        kwargs["sampler"] = "diffusion_forcing"
    return type(model).generate(model, inputs, generation_config, *args, **kwargs)
