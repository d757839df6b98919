"""Run ``python -m spatialflow.doctor``: see :mod:`spatialflow.cli.doctor`."""

import sys

from spatialflow.cli.doctor import main

if __name__ == "__main__":
    sys.exit(main())
