"""The split of the training images between the weights and the architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from spatialflow.data.selection import in_validation_split
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.randomness import mix_seeds


def split_filter(cfg: CfgNode, *, architecture: bool) -> Callable[[dict[str, Any]], bool]:
    """Return a test for the images of one side of a search, by a hash of seed and name.

    Args:
        cfg: Config; ``SEARCH.ARCHITECTURE_FRACTION`` and ``SEARCH.SPLIT_SEED`` are read.
        architecture: True for the images that the architecture learns from, False for those of the
            weights.

    Raises:
        ConfigError: If ``SEARCH.ARCHITECTURE_FRACTION`` leaves weights or architecture no image.
    """
    fraction = cfg.SEARCH.ARCHITECTURE_FRACTION
    # The validation split of DATASETS.FOLDER hashes the same names: with an equal seed it would
    # remove just the images of one side.
    seed = mix_seeds(cfg.SEARCH.SPLIT_SEED, 5)
    if not 0 < fraction < 1:
        raise ConfigError(
            f"SEARCH.ARCHITECTURE_FRACTION: {fraction} given, between 0 and 1 expected"
        )
    return lambda image: (
        in_validation_split(Path(image["file_name"]).name, fraction, seed) == architecture
    )
