"""Check that Detectron2 can be imported, and explain what to do if not."""

from __future__ import annotations

import sys
from itertools import pairwise

HELP = (
    "`python -m spatialflow.doctor` says what is missing and what to do; "
    "docs/install.md has the two ways to install Detectron2."
)


def doctor_is_running() -> bool:
    """Return whether this interpreter was started as ``python -m spatialflow.doctor``."""
    arguments = sys.orig_argv
    return any(
        flag == "-m" and module == "spatialflow.doctor" for flag, module in pairwise(arguments)
    )


def require_detectron2() -> bool:
    """Check that Detectron2 can be imported, before the package imports its modules.

    Returns:
        Whether the package shall import its own modules: False for the doctor, which must start
        even where nothing else can be imported.

    Raises:
        ImportError: If Detectron2, or something that it needs, is missing or does not load.
    """
    if doctor_is_running():
        return False
    try:
        import detectron2.modeling  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        # OSError: a shared library does not load. RuntimeError: torch and torchvision do not match.
        raise ImportError(f"spatialflow needs Detectron2 and PyTorch: {error}. {HELP}") from error
    return True
