"""What the samplers share whose ticks can be compiled."""

from dataclasses import dataclass

from .sampler_config import SamplerConfig
from .validation import check_flag


@dataclass(kw_only=True)
class CompilableConfig(SamplerConfig):
    """Settings of the samplers whose ticks can be compiled.

    Args:
        compile: run the core passes of ticks in few shapes, each compiled once by torch.compile, and captured as a CUDA
            graph on a CUDA device. Texts stay the same up to rounding.
    """

    compile: bool = False

    def validate(self) -> None:
        super().validate()
        check_flag("compile", self.compile)

    @property
    def is_compiled(self) -> bool:
        return self.compile
