"""Fits a model's decoding heads to text that the model writes itself."""

from .fit import FitResult, FitSettings, fit_heads

__all__ = ["FitResult", "FitSettings", "fit_heads"]
