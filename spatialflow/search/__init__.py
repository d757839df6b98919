"""The search: space, supernet, alternating trainer, derivation and report."""
