"""Load genotypes by name or path, and the genotype of a config."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode

from darts.genotype import Genotype
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES, POOLED_BRANCHES
from spatialflow.config.values import shown
from spatialflow.config.yaml_files import configs_root
from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path


def builtin_genotypes() -> list[str]:
    """Return the names of the genotypes in ``configs/genotypes``."""
    return sorted(path.stem for path in (configs_root() / "genotypes").glob("*.json"))


def load_genotype(name: str) -> Genotype:
    """Return a genotype by the value of ``MODEL.SPATIALFLOW.GENOTYPE``.

    Args:
        name: Name of a file in ``configs/genotypes`` without its suffix, or a path.

    Raises:
        ConfigError: If there is no such genotype, or it is not valid.
    """
    given = Path(absolute_path(name, "MODEL.SPATIALFLOW.GENOTYPE"))
    for path in (configs_root() / "genotypes" / f"{name}.json", given):
        if name and os.path.isfile(path):
            return Genotype.load(path)
    known = ", ".join(builtin_genotypes())
    raise ConfigError(
        f"MODEL.SPATIALFLOW.GENOTYPE: {shown(name)} is neither a file nor one of {known}"
    )


def pooled_convs(cfg: CfgNode) -> dict[str, str]:
    """Return the choices of convolution that ``MODEL.SPATIALFLOW.POOL_FROM`` makes."""
    own = cfg.MODEL.SPATIALFLOW
    if own.POOL_FROM == "branch":
        return {}
    branches = POOLED_BRANCHES if own.REGIONS.ENABLED else POOLED_BRANCHES[1:]
    return {f"{branch}.1.conv": "identity" for branch in branches}


def genotype_of(cfg: CfgNode) -> Genotype:
    """Return the genotype of a config.

    ``MODEL.SPATIALFLOW.STUFF_ATTENTION`` may replace its choices of attention, and ``POOL_FROM``
    gives the choices of convolution that it does not make.

    Raises:
        ConfigError: If there is no such genotype, it is not valid, or ``STUFF_ATTENTION`` is wrong.
    """
    own = cfg.MODEL.SPATIALFLOW
    genotype = load_genotype(own.GENOTYPE)
    if pooled := pooled_convs(cfg):
        genotype = replace(genotype, choices={**pooled, **genotype.choices})
    if own.STUFF_ATTENTION == "from_genotype":
        return genotype
    replaced = dict.fromkeys(ATTENTION_SITES, "none")
    for part in own.STUFF_ATTENTION.split(","):
        site, _, option = part.strip().partition("=")
        choice = f"stuff.attention.{site}"
        if choice not in ATTENTION_SITES or option not in ATTENTION_OPTIONS:
            sites = [known.rpartition(".")[2] for known in ATTENTION_SITES]
            raise ConfigError(
                f"MODEL.SPATIALFLOW.STUFF_ATTENTION: {shown(own.STUFF_ATTENTION)} given, "
                f"'from_genotype' or '<site>=<option>' expected, sites {sites}, options "
                f"{list(ATTENTION_OPTIONS)}"
            )
        replaced[choice] = option
    provenance = {**genotype.provenance, "choices_replaced_by_config": replaced}
    return replace(genotype, choices={**genotype.choices, **replaced}, provenance=provenance)
