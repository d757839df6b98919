"""The hash that identifies the settings of a run, as kept results name them."""

from __future__ import annotations

import hashlib

from detectron2.config import CfgNode

from spatialflow.config.loading import get_cfg
from spatialflow.config.options import SUPERNET
from spatialflow.config.values import leaves

SPEED_KEYS = ("MODEL.SPATIALFLOW.PACK_CONVOLUTIONS", "MODEL.SPATIALFLOW.CHECK_WEIGHTS")
"""Keys that change the speed of a run and not its result."""


def config_hash(cfg: CfgNode) -> str:
    """Return twelve hex digits that identify the values of a config that are not defaults.

    ``OUTPUT_DIR`` and :data:`SPEED_KEYS` do not count. A key that a later version adds does not
    change the hash while it has its default.
    """
    defaults, given = leaves(get_cfg()), leaves(cfg)
    for name in ("OUTPUT_DIR", *SPEED_KEYS):
        given.pop(name, None)
    # Version 0.1 said so by another key, and hashes of its searches are kept.
    if given.get("MODEL.META_ARCHITECTURE") == SUPERNET:
        given["MODEL.META_ARCHITECTURE"] = defaults["MODEL.META_ARCHITECTURE"]
        given["SEARCH.ENABLED"] = True
    changed = {n: v for n, v in given.items() if n not in defaults or defaults[n] != v}
    return hashlib.sha256(repr(sorted(changed.items())).encode()).hexdigest()[:12]
