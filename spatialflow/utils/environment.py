"""What has to be right before PyTorch and Detectron2 are imported."""

from __future__ import annotations

import os
import warnings

HELP = (
    "`spatialflow doctor` says what is missing and what to do; "
    "docs/install.md has the two ways to install Detectron2."
)


def let_threads_sleep() -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment has another policy.

    They spin otherwise. Where another program takes a core, a spinning thread keeps the one that it
    waits for from running. OpenMP reads the variable when PyTorch is imported, here and in the
    processes that this one starts.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def require_detectron2() -> None:
    """Check that Detectron2 can be imported, before the package imports its modules.

    Raises:
        ImportError: If Detectron2, or something that it needs, is missing or does not load.
    """
    try:
        with warnings.catch_warnings():
            # Detectron2 and fvcore compile with torch.jit.script, which newer PyTorch warns of.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
            import detectron2.modeling  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        # OSError: a shared library does not load. RuntimeError: torch and torchvision do not match.
        raise ImportError(f"spatialflow needs Detectron2 and PyTorch: {error}. {HELP}") from error
