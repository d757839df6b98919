#!/usr/bin/env python
"""Train or evaluate a model: ``spatialflow train``, under the name that Detectron2 users know."""

import sys

from spatialflow_cli.main import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:], "train_net.py"))
