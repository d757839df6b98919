"""Measurements and comparisons of models, shared by tools, benchmarks and experiments."""
