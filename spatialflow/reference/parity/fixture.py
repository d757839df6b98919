"""A parity fixture: a checkpoint of the authors' code, and what their code computes from it.

A folder holds ``expected.npz`` and either ``checkpoint.pth``, as the authors' code writes it, or,
in a *compact* fixture, ``checkpoint.npz``: the same tensors, the large ones rounded to 16 bits with
a scale per output channel. The ``manifest`` of a compact ``expected.npz`` says of which arrays only
every n-th value is kept.
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

Array = NDArray[Any]

MANIFEST = "manifest"


@dataclass
class Fixture:
    """What the authors' code was given and what it gave.

    Attributes:
        folder: where the fixture was read from.
        checkpoint: the authors' names and tensors.
        arrays: the arrays of ``expected.npz``.
        sampled: for arrays of which only every n-th value is kept: (full shape, n).
        compact: whether the weights are rounded.
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
        """Return an array and marks it as looked at.

        Raises:
            ValueError: if the fixture does not hold it.
        """
        if key not in self.arrays:
            raise ValueError(f"fixture {self.folder}: `{key}` is not in expected.npz")
        self._used.add(key)
        return self.arrays[key]

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of the authors' array, also where only a sample of it is kept."""
        return self.sampled[key][0] if key in self.sampled else self.arrays[key].shape

    def sample(self, key: str, full: Array) -> Array:
        """Return those values of an array that the fixture holds of its counterpart ``key``.

        Args:
            key: the name of the counterpart.
            full: an array of the shape ``self.shape(key)``.
        """
        return full.reshape(-1)[:: self.sampled[key][1]] if key in self.sampled else full

    def under(self, prefix: str) -> list[str]:
        """Return the names of arrays that begin with ``prefix``, in the file's order."""
        return [key for key in self.arrays if key.startswith(prefix)]

    def unused(self) -> list[str]:
        """Return the names of arrays that nothing has taken."""
        return [key for key in self.arrays if key not in self._used]


def read_fixture(folder: str | Path) -> Fixture:
    """Read a full or a compact fixture.

    Raises:
        ValueError: if a file is missing or cannot be read; the message names it.
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
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except FileNotFoundError as error:
        raise ValueError(f"fixture: {path} does not exist") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"fixture: {path} is not readable as .npz ({error})") from error


def split_bytes(values: Array) -> Array:
    """Put first bytes beside first bytes, second beside second, …, which compresses better."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)


def _join_bytes(planes: Array, dtype: str) -> Array:
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)
