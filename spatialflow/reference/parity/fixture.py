"""Read a parity fixture: a checkpoint of the authors' code, and the values that it computes.

A fixture is a folder with ``expected.npz`` and a checkpoint. The checkpoint of a full fixture is
``checkpoint.pth`` in the authors' format. That of a *compact* fixture is ``checkpoint.npz``: its
large tensors are rounded to 16 bits with one scale per output channel. The array ``manifest`` in a
compact ``expected.npz`` lists the arrays of which only every n-th value is kept.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatialflow.reference.conversion import read_reference_checkpoint
from spatialflow.utils.errors import DataError
from spatialflow.utils.files import why_no_file

Array = NDArray[Any]

MANIFEST = "manifest"
"""Name of the array in ``expected.npz`` that holds the manifest, as the bytes of a JSON text."""


@dataclass
class Fixture:
    """Inputs and outputs of the authors' code.

    Attributes:
        folder: Folder of the fixture.
        checkpoint: Tensors of the checkpoint, by the authors' names.
        arrays: Arrays of ``expected.npz`` by name.
        sampled: Name of an array of which only every n-th value is kept → its full shape and n.
        compact: Whether the fixture is compact, with rounded weights.
    """

    folder: Path
    checkpoint: dict[str, Tensor]
    arrays: dict[str, Array]
    sampled: dict[str, tuple[tuple[int, ...], int]]
    compact: bool
    _used: set[str] = field(default_factory=set)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def take(self, key: str) -> Array:
        """Return an array, and remember that it was read.

        Raises:
            DataError: If the fixture has no array of this name.
        """
        if key not in self.arrays:
            raise DataError(f"fixture {self.folder}: `{key}` is not in expected.npz")
        self._used.add(key)
        return self.arrays[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the full shape of an array, also if only a sample of it is kept."""
        return self.sampled[key][0] if key in self.sampled else self.arrays[key].shape

    def sample(self, key: str, full: Array) -> Array:
        """Return the values of our array at the places that the fixture keeps of the authors' one.

        Args:
            key: Name of the authors' array.
            full: Our array, of the shape ``self.shape(key)``.
        """
        return full.reshape(-1)[:: self.sampled[key][1]] if key in self.sampled else full

    def under(self, prefix: str) -> list[str]:
        """Return the names of arrays that begin with ``prefix``, in the file's order."""
        return [key for key in self.arrays if key.startswith(prefix)]

    def unused(self) -> list[str]:
        """Return the names of the arrays that :meth:`take` has not returned."""
        return [key for key in self.arrays if key not in self._used]


def read_fixture(folder: str | Path) -> Fixture:
    """Read a full or a compact fixture.

    Raises:
        ValueError: If a file is missing or cannot be read; the message names it.
    """
    folder = Path(folder)
    arrays = _read_arrays(folder / "expected.npz")
    manifest = json.loads(bytes(arrays.pop(MANIFEST))) if MANIFEST in arrays else {}
    compact = not (folder / "checkpoint.pth").is_file() and (folder / "checkpoint.npz").is_file()
    checkpoint = (
        _read_compact_checkpoint(folder / "checkpoint.npz")
        if compact
        else read_reference_checkpoint(folder / "checkpoint.pth")
    )
    sampled = {
        key: (tuple(entry["shape"]), entry["every"])
        for key, entry in manifest.get("sampled", {}).items()
    }
    return Fixture(folder, checkpoint, arrays, sampled, compact)


def _read_compact_checkpoint(path: Path) -> dict[str, Tensor]:
    arrays = _read_arrays(path)
    content = json.loads(bytes(arrays["tensors"]))
    rounded = _join_bytes(arrays["rounded"], "<i2")
    exact = _join_bytes(arrays["exact"], "<f4")
    scales = arrays["scales"]
    state = {}
    for name, shape, dtype in content["tensors"]:
        size = int(np.prod(shape))
        if size < content["large"]:
            value, exact = exact[:size], exact[size:]
        else:
            rows, rounded = rounded[:size].reshape(shape[0], -1), rounded[size:]
            scale, scales = scales[: shape[0]], scales[shape[0] :]
            value = rows.astype(np.float32) * scale[:, None]
        state[name] = torch.from_numpy(np.array(value).reshape(shape).astype(dtype))
    return state


def _read_arrays(path: Path) -> dict[str, Array]:
    message = why_no_file(path)
    if message is not None:
        raise DataError(f"fixture: {path}: {message}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"fixture: {path} is not readable as .npz ({error})") from error


def _join_bytes(planes: Array, dtype: str) -> Array:
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
