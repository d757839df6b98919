"""Checkpoints that are whole, fit their model, and run no code when they are read."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from spatialflow.utils.errors import CheckpointError
from spatialflow.utils.files import remove_partial_files, write_atomically

# All that a pickle of NumPy arrays needs. `_codecs.encode` is how Python 3 writes bytes in old
# pickles; NumPy's `core` was renamed in version 2.
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


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, for a machine that may stop at any moment.

    Files are written beside their place and renamed. Nothing in a file is executed: PyTorch's are
    read as weights only, Detectron2's ``.pkl`` as NumPy arrays only. A file that does not fit is
    an error: to resume and to evaluate, every tensor has to be there; to start a training from,
    at least one.
    """

    def save(self, name: str, *, resumable: bool = True, **kwargs: Any) -> None:
        """Write model, what belongs to it, and ``kwargs`` to ``<name>.pth``.

        Args:
            name: Of the file, without suffix.
            resumable: Whether ``--resume`` shall go on from this file; if not, the weights alone
                are written.
            kwargs: Anything else to store.

        Raises:
            OSError: If the disk is full or the folder cannot be written; what was there stays.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        if resumable:
            data |= {key: item.state_dict() for key, item in self.checkpointables.items()}
        data |= kwargs
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        if resumable:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the file that ``--resume`` goes on from."""
        content = last_filename_basename.encode()
        write_atomically(Path(self.save_dir, "last_checkpoint"), lambda file: file.write(content))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint, or load weights.

        Args:
            path: Weights, where there is no checkpoint to go on from; "" for none.
            resume: Whether to go on.

        Returns:
            What else is in the file.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or does not fit.
        """
        if self.save_to_disk and self.save_dir:
            remove_partial_files(self.save_dir)
        if resume and self.has_checkpoint():
            last = Path(self.get_checkpoint_file())
            if not last.is_file() or last == Path(self.save_dir):
                there = sorted(file.name for file in Path(self.save_dir).glob("*.pth"))
                raise CheckpointError(
                    f"{self.save_dir}/last_checkpoint names {last.name!r}, which is not there; "
                    f"expected one of {there}"
                )
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file.

        Args:
            path: File or URL; "" for nothing.
            checkpointables: Which parts besides the model; None for all, which have to be there.

        Returns:
            What else is in the file.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or does not fit.
        """
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        self._wanted = wanted
        try:
            return super().load(path, checkpointables=wanted)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(f"{path}: has no {error}") from error
        except (AssertionError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".pkl"):
                loaded = _zoo_format(load_numpy_pickle(filename))
            else:
                loaded = super()._load_file(filename)
        except OSError:
            raise
        except Exception as error:  # broken bytes make an unpickler raise almost anything
            reason = re.split(r"\n|\. ", str(error).strip())[0]
            raise CheckpointError(
                f"{filename}: not a whole file of weights, or one that holds more than weights: "
                f"{reason}"
            ) from error
        _check_content(filename, loaded, self._wanted)
        self._source = filename
        return loaded

    def _torch_load(self, f: str) -> Any:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        stored = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        shapes = [
            f"{key}: {tuple(given)} in the file, {tuple(expected)} in the model"
            for key, given, expected in incompatible.incorrect_shapes
        ]
        misshapen = {key for key, _, _ in incompatible.incorrect_shapes}
        missing = [key for key in incompatible.missing_keys if key not in misshapen]
        unexpected = incompatible.unexpected_keys
        exact = bool(self._wanted) or not self.model.training
        if exact and (missing or unexpected or shapes):
            raise CheckpointError(
                f"{self._source} is of another model: {_some('wrong shape', shapes)}"
                f"{_some('only in the model', missing)}{_some('only in the file', unexpected)}"
                "expected every tensor of MODEL.* as configured"
            )
        own = self.model.state_dict()
        if own and len(missing) + len(shapes) >= len(own):
            raise CheckpointError(
                f"{self._source} is of another model: none of its tensors fits; "
                f"{_some('only in the file', sorted(stored))}{_some('wrong shape', shapes)}"
                f"{_some('expected', sorted(own))}".removesuffix("; ")
            )
        return incompatible


def _some(what: str, names: list[str]) -> str:
    """Write up to three names as part of a message, or nothing."""
    if not names:
        return ""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}; "


def _check_content(filename: str, loaded: Any, wanted: list[str]) -> None:
    model = loaded.get("model") if isinstance(loaded, dict) else loaded
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{filename}: {model!r:.60} found, named tensors expected")
    wrong = [
        str(name)
        for name, value in model.items()
        if not (isinstance(name, str) and (isinstance(value, Tensor) or hasattr(value, "dtype")))
    ]
    if wrong:
        raise CheckpointError(
            f"{filename}: named tensors expected, {_some('these are none:', wrong)}".removesuffix(
                "; "
            )
        )
    absent = [key for key in wanted if key not in loaded]
    if absent:
        raise CheckpointError(
            f"{filename}: no state of {', '.join(absent)}, only weights: a training cannot be "
            "resumed from it; give it as MODEL.WEIGHTS, without --resume"
        )


def load_numpy_pickle(path: str) -> Any:
    """Read a pickle of NumPy arrays, as Detectron2's model zoo has them, and run nothing in it.

    Raises:
        pickle.UnpicklingError: If it holds anything else.
        OSError: If it cannot be read.
    """
    with open(path, "rb") as file:
        return _NumpyUnpickler(file, encoding="latin1").load()


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY_NAMES:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array's")
        return super().find_class(module, name)


def _zoo_format(data: Any) -> Any:
    """Bring what Detectron2's and Caffe2's files hold to one form.

    Names of Caffe2's are matched by Detectron2's heuristics.
    """
    if not isinstance(data, dict) or ("model" in data and "__author__" in data):
        return data
    weights = data.get("blobs", data)
    return {
        "model": {key: value for key, value in weights.items() if not key.endswith("_momentum")},
        "__author__": "Caffe2",
        "matching_heuristics": True,
    }
