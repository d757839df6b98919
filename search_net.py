#!/usr/bin/env python
"""Search the flows of SpatialFlow, and write the genotype that train_net.py trains."""

from spatialflow.cli.search import main

if __name__ == "__main__":
    main()
