"""Measures how each sampler treats every argument of `generate()`, for docs/compatibility.md.

Each argument has a probe, which runs on a tiny model with random weights. The page is not written if an argument has no
probe, has no effect without a stated reason, crashes, or produces a text that differs from its reference. A new version
of transformers therefore cannot add an argument unnoticed: add a probe to `probes.py` and write the page again.
"""
