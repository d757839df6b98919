#!/usr/bin/env python
"""Train or evaluate a model from a config: ``python train_net.py --help``."""

from spatialflow.cli.train import main

if __name__ == "__main__":
    main()
