"""Run the command ``spatialflow`` by ``python -m spatialflow_cli``."""

import sys

from spatialflow_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
