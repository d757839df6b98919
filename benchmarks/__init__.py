"""Benchmarks of speed, memory, recovery and peers; each is a program."""
