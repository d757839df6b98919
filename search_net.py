#!/usr/bin/env python
"""Search the flows of SpatialFlow: ``spatialflow search``."""

import sys

from spatialflow_cli.main import run

if __name__ == "__main__":
    sys.exit(run("search", sys.argv[1:], "search_net.py"))
