"""Configs: keys with their defaults, loading, genotypes by name, and checks of values."""

from spatialflow.config.defaults import add_spatialflow_config
from spatialflow.config.genotypes import builtin_genotypes, genotype_of, load_genotype
from spatialflow.config.identity import config_hash
from spatialflow.config.loading import find_config, get_cfg
from spatialflow.config.yaml_files import configs_root

__all__ = [
    "add_spatialflow_config",
    "builtin_genotypes",
    "config_hash",
    "configs_root",
    "find_config",
    "genotype_of",
    "get_cfg",
    "load_genotype",
]
