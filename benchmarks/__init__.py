"""Measurements: run by hand, never as tests. Ratios within one run are what counts; the machine is shared."""
