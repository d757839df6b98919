"""Check that Detectron2 can be imported, and explain what to do if not."""

from __future__ import annotations

import warnings

HELP = (
    "`spatialflow doctor` says what is missing and what to do; "
    "docs/install.md has the two ways to install Detectron2."
)


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
