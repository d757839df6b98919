"""Small data sets as in ``tests/data``, and its clean catalogs and cache."""

from tests.data.conftest import clean_catalogs, own_cache, register_folder, write_dataset

__all__ = ["clean_catalogs", "own_cache", "register_folder", "write_dataset"]
