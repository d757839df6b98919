"""Measure and compare models: what tools, benchmarks, experiments and the demo share."""
