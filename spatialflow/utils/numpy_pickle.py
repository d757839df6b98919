"""Read pickles of NumPy arrays, the format of Detectron2's model zoo, without running code."""

from __future__ import annotations

import pickle
from typing import Any

# A pickle of NumPy arrays needs no other names. Python 3 writes bytes in old pickles by
# `_codecs.encode`; NumPy 2 renamed `core` to `_core`.
NUMPY_NAMES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


def load_numpy_pickle(path: str) -> Any:
    """Read a pickle of NumPy arrays, the format of Detectron2's model zoo, without running code.

    Raises:
        pickle.UnpicklingError: If the pickle names anything but arrays.
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        return _NumpyUnpickler(file, encoding="latin1").load()


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array's")
        return super().find_class(module, name)
