"""The authors' checkpoints: names, conversion, and parity with their code."""
