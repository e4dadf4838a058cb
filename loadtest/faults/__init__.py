"""Experiments that break things on purpose and count what was lost. `python -m loadtest.faults --help` lists them."""
