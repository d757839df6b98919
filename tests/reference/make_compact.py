"""Write the compact copy of the parity fixture.

Usage: python tests/reference/make_compact.py FULL_FIXTURE_DIR tests/reference/compact
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from spatialflow.reference.parity.fixture import MANIFEST, Fixture, read_fixture

LARGE = 2000
ROUNDED_LIMIT = 32767
# Every n-th value is kept. n shares no factor with the sizes of the maps, so that the kept
# values are spread over all channels, rows and columns.
EVERY = {
    "fpn.": 11,
    "cls_logits.": 11,
    "box_deltas.": 11,
    "stuff_features.": 11,
    "mask_features.": 11,
    "stuff_logits": 31,
    "detections.mask_logits": 61,
}


def _split_bytes(values: np.ndarray) -> np.ndarray:
    """Return the bytes of an array (n values of k bytes) as (k, n), which compresses better."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, values.itemsize).T)


def write_compact(fixture: Fixture, folder: Path) -> None:
    """Write ``expected.npz`` and ``checkpoint.npz``.

    Args:
        fixture: Full fixture.
        folder: Existing folder.
    """
    every = {
        key: step for key in fixture.arrays for name, step in EVERY.items() if key.startswith(name)
    }
    arrays = {
        key: value.reshape(-1)[:: every[key]] if key in every else value
        for key, value in fixture.arrays.items()
    }
    sampled = {
        key: {"shape": fixture.arrays[key].shape, "every": step} for key, step in every.items()
    }
    arrays[MANIFEST] = json_array({"sampled": sampled})
    np.savez_compressed(folder / "expected.npz", **arrays)
    write_rounded(fixture, folder / "checkpoint.npz")


def write_rounded(fixture: Fixture, path: Path) -> None:
    """Write the checkpoint, its large tensors as 16-bit integers with a scale per output."""
    tensors, rounded, scales, exact = [], [], [], []
    for name, tensor in fixture.checkpoint.items():
        value = tensor.numpy()
        tensors.append((name, value.shape, str(value.dtype)))
        if value.size < LARGE:
            exact.append(value.reshape(-1))
            continue
        rows = value.reshape(value.shape[0], -1)
        scale = (np.abs(rows).max(axis=1) / ROUNDED_LIMIT).astype(np.float32)
        rounded.append(np.round(rows / scale[:, None]).astype("<i2").reshape(-1))
        scales.append(scale)
    np.savez_compressed(
        path,
        tensors=json_array({"tensors": tensors, "large": LARGE}),
        rounded=_split_bytes(np.concatenate(rounded)),
        scales=np.concatenate(scales),
        exact=_split_bytes(np.concatenate(exact).astype("<f4")),
    )


def json_array(content: object) -> np.ndarray:
    """Return a JSON document as an array of bytes."""
    return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the compact copy of a parity fixture.")
    parser.add_argument("source", type=Path, help="a full fixture")
    parser.add_argument("target", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    write_compact(read_fixture(arguments.source), arguments.target)
