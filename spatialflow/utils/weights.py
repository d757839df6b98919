"""Check what a file of weights holds before it is used: checksums, types and finite numbers."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatialflow.utils.errors import CheckpointError
from spatialflow.utils.text import first_of

KEY = "MODEL.SPATIALFLOW.CHECK_WEIGHTS"
"""Key of the config that leaves out the checks that read all bytes of a file."""

FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})
"""Types that may be cast to a parameter's; the smaller ones of 8 bits need a scale."""


def check_archive(path: str | Path) -> None:
    """Compare the checksums of a file of ``torch.save``, which ``torch.load`` does not.

    Files in PyTorch's format from before version 1.6, pickles and safetensors have none.

    Args:
        path: Any file.

    Raises:
        CheckpointError: If a part of it has another checksum.
        OSError: If it cannot be read.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except OSError:
        raise
    except Exception as error:  # broken bytes make a reader raise almost anything
        damaged = str(error)
    if damaged is not None:
        raise CheckpointError(
            f"{path}: damaged: the checksum of its part {damaged!r} is wrong; an undamaged copy "
            f"expected (or {KEY} False, for a file that was written without checksums)"
        )


def check_tensors(
    path: str | Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, finite: bool
) -> None:
    """Check the tensors that a model takes from a file; others do not count.

    Args:
        path: The file, for messages.
        given: Tensors of the file by the model's names.
        expected: Tensors of the model.
        finite: Whether to look for NaN and infinity, too.

    Raises:
        CheckpointError: If a tensor has no plain numbers, has integers in the place of floating-
            point numbers or the other way round, or is not finite.
    """
    taken = {name: given[name] for name in expected if name in given}
    wrong = [
        f"{name} (given {_kind(value)}, expected {_kind(expected[name])})"
        for name, value in taken.items()
        if not _casts(value, expected[name])
    ]
    if wrong:
        raise CheckpointError(f"{path}: tensors of a wrong type: {first_of(wrong)}")
    if finite:
        check_finite(path, taken.items())


def check_state(path: str | Path, state: Any, *, finite: bool) -> None:
    """Check the tensors, and an optimiser's numbers, in the nested state of a training.

    Args:
        path: The file, for messages.
        state: Nested dicts and lists.
        finite: Whether to look for NaN and infinity, too.

    Raises:
        CheckpointError: If a tensor has no plain numbers, an optimiser's tensor has no
            floating-point numbers, or one is not finite.
    """
    tensors = {name: value for name, value in _leaves(state) if isinstance(value, Tensor)}
    wrong = [
        f"{name} (given {_kind(value)})"
        for name, value in tensors.items()
        if not (_is_plain(value) and (_is_float(value) or ".optimizer." not in name))
    ]
    if wrong:
        raise CheckpointError(f"{path}: tensors of a wrong type: {first_of(wrong)}")
    numbers = [
        name
        for name, value in _leaves(state)
        if ".optimizer." in name and isinstance(value, float) and not math.isfinite(value)
    ]
    if numbers:
        raise CheckpointError(f"{path}: not finite: {first_of(numbers)}")
    if finite:
        check_finite(path, tensors.items())


def check_finite(path: str | Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Look for NaN and infinity.

    Raises:
        CheckpointError: Naming the tensors.
    """
    broken = [name for name, value in tensors if not _is_finite(value)]
    if broken:
        raise CheckpointError(
            f"{path}: NaN or infinity in {first_of(broken)}; finite weights expected "
            f"({KEY} False takes them all the same)"
        )


def _casts(value: Tensor, own: Tensor) -> bool:
    """Return whether a value may be cast to a tensor's type without a loss of meaning."""
    if not _is_plain(value):
        return False
    if own.is_floating_point():
        return _is_float(value)
    return not value.is_floating_point() and (value.dtype == torch.bool) == (
        own.dtype == torch.bool
    )


def _is_plain(value: Tensor) -> bool:
    plain = value.layout == torch.strided and not (value.is_quantized or value.is_nested)
    return plain and not (value.is_meta or value.is_complex())


def _is_float(value: Tensor) -> bool:
    return value.dtype in FLOATS


def _is_finite(value: Tensor) -> bool:
    if not _is_float(value):
        return True
    stored = value.untyped_storage()
    if value.numel() * value.element_size() > stored.nbytes():
        # Numbers that are used several times, up to any size: look at each once.
        value = torch.empty(0, dtype=value.dtype).set_(stored)
    # A sum needs no second tensor. It may overflow, though.
    return math.isfinite(value.sum().item()) or bool(value.isfinite().all())


def _kind(value: Tensor) -> str:
    """Return the type of a tensor in words."""
    words = [str(value.dtype).removeprefix("torch.")]
    if value.layout != torch.strided or value.is_nested:
        words.insert(
            0, str(value.layout).removeprefix("torch.") if not value.is_nested else "nested"
        )
    if value.is_meta:
        words.insert(0, "without data,")
    return " ".join(words)


def _leaves(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values in nested dicts and lists, each with the way to it."""
    if isinstance(state, Mapping):
        items: Iterable[tuple[Any, Any]] = state.items()
    elif isinstance(state, (list, tuple)):
        items = enumerate(state)
    else:
        yield prefix, state
        return
    for key, value in items:
        yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
