"""Write checkpoints atomically, and read only files that fit the model, without running code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from spatialflow.utils.errors import CheckpointError
from spatialflow.utils.files import why_no_file, write_atomically
from spatialflow.utils.numpy_pickle import load_numpy_pickle
from spatialflow.utils.text import first_of
from spatialflow.utils.weights import check_archive, check_state, check_tensors

ZOO_NAMES = {
    "roi_heads.mask_head.": "mask_head.fcn.",
    "roi_heads.box_head.": "region_head.box_head.",
    "roi_heads.box_predictor.": "region_head.box_predictor.",
}
"""Prefix of names in Detectron2's Mask R-CNN and Panoptic FPN → prefix of the same part here."""

PARTS = {
    "trunk": "backbone.bottom_up.",
    "pyramid": "backbone.",
    "branches and flows": "flow_graph.",
    "box head": "box_head.",
    "region head": "region_head.",
    "mask head": "mask_head.",
    "stuff head": "stuff_head.",
}
"""Part of the network → prefix of its names; the first that fits counts."""


def has_checkpoint(folder: str) -> bool:
    """Return whether a run in a folder can go on from a checkpoint, or be evaluated by it."""
    return Path(folder, "last_checkpoint").is_file()


def frozen_trunk(model: nn.Module) -> list[str]:
    """Return the names of the trunk's parameters that do not learn."""
    return [
        name
        for name, parameter in model.named_parameters()
        if name.startswith(PARTS["trunk"]) and not parameter.requires_grad
    ]


def check_weights_file(weights: str) -> None:
    """Check that ``MODEL.WEIGHTS`` is empty, a URL, or a file.

    Args:
        weights: The value; ``?matching_heuristics=True`` may follow the file, as in Detectron2.

    Raises:
        CheckpointError: If there is no such file.
    """
    if not weights or "://" in weights:
        return
    message = why_no_file(weights.partition("?")[0])
    if message is not None:
        raise CheckpointError(f"MODEL.WEIGHTS: {message}: {weights!r}")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe against interruptions and against hostile files.

    It writes a file under another name and renames it at the end, so that an interruption leaves
    the old file whole. It runs no code from a file: it reads PyTorch's files as weights only, and
    Detectron2's ``.pkl`` files as NumPy arrays only. It raises an error for a file that does not
    fit the model: a run that resumes or evaluates needs every tensor, a new training needs at
    least one. Checksums, types and finite numbers are checked before anything is used. A new
    training may start from a network of Detectron2's model zoo: it takes trunk,
    pyramid and mask head where they fit, and says so.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        check_weights: bool = True,
        **checkpointables: Any,
    ) -> None:
        """Keep the parts.

        Args:
            model: Model to save and load.
            save_dir: Folder of the checkpoints.
            save_to_disk: Whether to write; None for the main process only.
            check_weights: Whether to compare checksums and to look for numbers that are not
                finite, which reads all bytes of a file once more.
            checkpointables: Further parts of a training, by name.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._thorough = check_weights
        self._model_is_loaded = False

    def save(self, name: str, *, resumable: bool = True, **kwargs: Any) -> None:
        """Write the model and the state of a training to ``<name>.pth``.

        Args:
            name: Name of the file, without suffix.
            resumable: Whether ``--resume`` can go on from this file; if False, the file holds the
                weights but neither optimiser nor hooks.
            kwargs: Further values to store, by name.

        Raises:
            OSError: If the disk is full or the folder cannot be written; an older file of this
                name then stays as it was.
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
        """Write the name of the file from which ``--resume`` goes on to ``last_checkpoint``."""
        content = last_filename_basename.encode()
        write_atomically(Path(self.save_dir, "last_checkpoint"), lambda file: file.write(content))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of the folder, or weights to start from.

        Args:
            path: File or URL of weights to load where there is no checkpoint; "" for none.
            resume: Whether to look for the last checkpoint.

        Returns:
            The values of the file that belong neither to the model nor to a part, by name.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or does not fit.
        """
        if resume and self.has_checkpoint():
            last = Path(self.get_checkpoint_file())
            if not last.is_file() or last == Path(self.save_dir):
                files = sorted(file.name for file in Path(self.save_dir).glob("*.pth"))
                raise CheckpointError(
                    f"{self.save_dir}/last_checkpoint names {last.name!r}, which is not there; "
                    f"expected one of {files}"
                )
        return super().resume_or_load(path, resume=resume)

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and other parts of a training, from a file.

        Args:
            path: File or URL to load; "" to load nothing.
            checkpointables: Names of the parts to load besides the model; None for all parts. The
                file must have each of them.

        Returns:
            The values of the file that belong neither to the model nor to a part, by name.

        Raises:
            CheckpointError: If the file is missing, cannot be read, or does not fit.
        """
        if not path:
            return {}  # Detectron2 would log that the model is initialised from scratch
        wanted = list(self.checkpointables) if checkpointables is None else checkpointables
        self._wanted = wanted
        self._model_is_loaded = False
        try:
            return super().load(path, checkpointables=wanted)
        except CheckpointError:
            raise
        except KeyError as error:
            raise CheckpointError(f"{path}: has no {error}") from error
        except (AssertionError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from error
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            if not self._model_is_loaded:
                raise
            state = ", ".join(wanted)
            raise CheckpointError(f"{path}: not a state of {state}: {_reason(error)}") from error
        finally:
            # Detectron2 resets it only after a success, and refuses the next file otherwise.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if self._thorough:
                check_archive(filename)
            if filename.endswith(".pkl"):
                loaded = _zoo_format(load_numpy_pickle(filename))
            else:
                loaded = super()._load_file(filename)
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # broken bytes make an unpickler raise almost anything
            raise CheckpointError(
                f"{filename}: not a whole file of weights, or one that holds more than weights: "
                f"{_reason(error)}"
            ) from error
        _check_content(filename, loaded, self._wanted)
        check_state(filename, {key: loaded[key] for key in self._wanted}, finite=self._thorough)
        self._source = filename
        return loaded

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        """Make tensors of arrays, and check those that the model takes.

        Detectron2 calls this before and after it matches names by its heuristics.
        """
        try:
            super()._convert_ndarray_to_tensor(state_dict)
        except TypeError as error:  # arrays of objects or text
            raise CheckpointError(f"{self._source}: {error}") from error
        given = {name.removeprefix("module."): value for name, value in state_dict.items()}
        check_tensors(self._source, given, self.model.state_dict(), finite=self._thorough)

    def _torch_load(self, f: str) -> Any:
        return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        exact = bool(self._wanted) or not self.model.training
        if not exact:
            checkpoint["model"] = _with_own_names(checkpoint["model"])
        stored = set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        shapes = [
            f"{key}: {tuple(given)} in the file, {tuple(expected)} in the model"
            for key, given, expected in incompatible.incorrect_shapes
        ]
        misshapen = {key for key, _, _ in incompatible.incorrect_shapes}
        missing = [key for key in incompatible.missing_keys if key not in misshapen]
        unexpected = incompatible.unexpected_keys
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
        if not exact:
            absent = misshapen.union(missing)
            random = [name for name in frozen_trunk(self.model) if name in absent]
            if random:
                raise CheckpointError(
                    f"{self._source} does not have all weights of this trunk, and "
                    "MODEL.BACKBONE.FREEZE_AT would keep them as they start, at random: "
                    f"{_some('without', random)}another file, or FREEZE_AT 0 expected"
                )
            # PyTorch does not report a missing counter of batches.
            found = [n for n in own if n not in absent and not n.endswith("num_batches_tracked")]
            taken = Counter(map(_part, found))
            counts = ", ".join(f"{part} ({count} tensors)" for part, count in taken.items())
            self.logger.info("Taken from %s: %s", self._source, counts)
        self._model_is_loaded = True
        return incompatible


def _with_own_names(weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights with the names that parts of Detectron2's networks have here."""
    renamed = {}
    for name, value in weights.items():
        prefix = next((p for p in ZOO_NAMES if name.startswith(p)), "")
        renamed[ZOO_NAMES.get(prefix, "") + name.removeprefix(prefix)] = value
    return renamed


def _part(name: str) -> str:
    """Return the part of the network that a tensor belongs to."""
    return next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "others")


def _some(what: str, names: list[str]) -> str:
    """Return up to three names as part of a message; "" where there are no names."""
    return f"{what} {first_of(names)}; " if names else ""


def _reason(error: Exception) -> str:
    """Return the first sentence of an error of PyTorch."""
    return re.split(r"\n|\. ", str(error).strip())[0]


def _check_content(filename: str, loaded: Any, wanted: list[str]) -> None:
    """Check that a file holds named tensors, the state of the wanted parts, and an iteration.

    Raises:
        CheckpointError: Naming the file and what it lacks.
    """
    model = loaded.get("model") if isinstance(loaded, dict) else loaded
    if not isinstance(model, dict) or not model:
        raise CheckpointError(f"{filename}: {model!r:.60} found, named tensors expected")
    wrong = [
        str(name)
        for name, value in model.items()
        if not (isinstance(name, str) and isinstance(value, (Tensor, np.ndarray)))
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
    for key in wanted:
        iteration = loaded[key].get("iteration", 0) if isinstance(loaded[key], dict) else 0
        if type(iteration) is not int or iteration < 0:
            raise CheckpointError(
                f"{filename}: {key}.iteration is {iteration!r:.60}, a number from 0 expected"
            )


def _zoo_format(data: Any) -> Any:
    """Convert the content of a Caffe2 file to that of a Detectron2 file.

    Detectron2 then matches the names of Caffe2's weights by its heuristics.
    """
    if not isinstance(data, dict) or ("model" in data and "__author__" in data):
        return data
    weights = data.get("blobs", data)
    return {
        "model": {key: value for key, value in weights.items() if not key.endswith("_momentum")},
        "__author__": "Caffe2",
        "matching_heuristics": True,
    }
