"""What every argument of `generate()` does with every sampler, measured: docs/compatibility.md.

Each argument has a probe, and the page says what the probe saw on a tiny model with random weights. These are errors,
and then nothing is written: an argument without a probe, one that does nothing without a reason, one that crashes, and
one whose text is not autoregression's where it must be. So a new version of transformers cannot add an argument
unnoticed: give it a probe in `probes.py`, and write the page again.
"""
