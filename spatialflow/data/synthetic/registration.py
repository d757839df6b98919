"""Register generated scenes as data sets, and keep them in the cache."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile

from spatialflow.data.evaluation_json import cache_root, writing_to_cache
from spatialflow.data.registration import register_own
from spatialflow.data.synthetic.scenes import generate_scenes

logger = logging.getLogger(__name__)

# Part of the folder's name in the cache. Raise it when the generator changes.
VERSION = 2
SEEDS = {"train": 0, "val": 1}


def register_scenes(*, train: int, val: int, size: int) -> dict[str, str]:
    """Register ``scenes_train`` and ``scenes_val``; generate scenes that the cache lacks.

    Args:
        train: Number of training scenes.
        val: Number of validation scenes, none of which is a training scene.
        size: Height and width of a scene in pixels.

    Returns:
        These names → the names of the data sets; another one where the name is taken already.

    Raises:
        ConfigError: If a number is too small, or the cache cannot be written.
    """
    names = {}
    for side, count in (("train", train), ("val", val)):
        root = cache_root() / "scenes" / f"{side}-{count}-{size}-seed{SEEDS[side]}-v{VERSION}"
        if not root.is_dir():
            logger.info("Generating %d scenes in %s", count, root)
            with writing_to_cache():
                root.parent.mkdir(parents=True, exist_ok=True)
                partial = tempfile.mkdtemp(dir=root.parent, prefix=".partial-")
                try:
                    generate_scenes(partial, count=count, seed=SEEDS[side], size=(size, size))
                    os.replace(partial, root)
                except OSError:
                    # Another process may have written the same folder; else it is an error.
                    if not root.is_dir():
                        raise
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
        names[f"scenes_{side}"] = register_own(f"scenes_{side}", root)
    return names
