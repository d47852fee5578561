"""What the samplers share that write autoregression's text."""

from dataclasses import dataclass

from .compiled import CompilableConfig
from .validation import check_flag


@dataclass(kw_only=True)
class LosslessConfig(CompilableConfig):
    """Settings of the samplers whose text is autoregression's.

    Args:
        exact: compute every position by the same arithmetic, whatever stands beside it: then lossless text equals
            autoregression's, also with `exact=True`, in every dtype, bit for bit. Without it, sums over one position
            and over several may round differently, and a nearly tied token may change.
    """

    exact: bool = False

    def validate(self) -> None:
        super().validate()
        check_flag("exact", self.exact)
        if self.exact and self.compile:
            raise ValueError(
                "exact=True is not possible with compile=True: compiled code may round otherwise. Leave out one of "
                "them."
            )

    @property
    def is_exact(self) -> bool:
        return self.exact
