"""Benchmarks: ratios of two things measured in turn within one run."""
