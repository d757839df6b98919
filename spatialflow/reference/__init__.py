"""The checkpoints of the authors: names, conversion, and parity with their code."""
