"""Measures what every argument of `generate()` does with every sampler, and writes docs/compatibility.md.

Each argument has a probe, which runs on a tiny model with random weights. The page is not written if an argument has no
probe, does nothing without a reason, crashes, or changes the text where it must equal autoregression's. A new
version of transformers therefore cannot add an argument unnoticed: give it a probe in `probes.py` and rewrite the page.
"""
