"""Benchmarks of speed, memory, recovery and peers. Each is a program."""
