"""Models of timm, and their weights: of a given file, the user's cache, or timm's hub."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spatialflow.utils.errors import ConfigError
from spatialflow.utils.paths import absolute_path
from spatialflow.utils.weights import check_archive, check_finite

logger = logging.getLogger(__name__)

FILE_NAMES = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a repository of the hub, in timm's order."""


def import_timm(model: str) -> ModuleType:
    """Return timm, after a check that it has a model.

    Args:
        model: Name of the model.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If timm has no such model; names similar ones.
    """
    try:
        # timm is optional and takes seconds to import, so it is imported for its own trunks only.
        import timm
    except ImportError as error:
        raise ImportError(
            f"MODEL.SPATIALFLOW.TRUNK: the trunk {model!r} needs timm: `pip install timm`"
        ) from error
    if not timm.is_model(model):
        close = difflib.get_close_matches(model, timm.list_models(), n=5)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ConfigError(f"MODEL.SPATIALFLOW.TRUNK: timm has no model {model!r}{hint}")
    return timm


def create_network(timm: ModuleType, model: str, **options: Any) -> Any:
    """Build a timm model that accepts images of any size and returns its feature maps.

    Args:
        timm: The package.
        model: Name of the model.
        options: More options of ``timm.create_model``.
    """
    try:
        # Without this option window transformers accept one image size only.
        return timm.create_model(model, features_only=True, strict_img_size=False, **options)
    except TypeError:  # other models do not have the option
        return timm.create_model(model, features_only=True, **options)


def weights_options(timm: ModuleType, model: str, file: str = "") -> dict[str, Any]:
    """Return the options with which ``timm.create_model`` loads pretrained weights.

    A file in the user's cache is taken without a request to the hub.

    Args:
        timm: The package.
        model: Name of a model of timm.
        file: File of weights; "" for the cache or the hub.

    Raises:
        ValueError: If timm has no weights of the model, or they are neither in the cache nor within
            reach.
    """
    key = "MODEL.SPATIALFLOW.TRUNK_WEIGHTS"
    if file:
        file = absolute_path(file, key)
        if not os.path.isfile(file):
            raise ConfigError(f"{key}: no such file: {file!r}")
        return {
            "pretrained": True,
            "pretrained_cfg_overlay": {"file": file},
        }
    config = timm.get_pretrained_cfg(model)
    if config is None or not (config.hf_hub_id or config.url):
        raise ConfigError(
            f"MODEL.SPATIALFLOW.TRUNK_PRETRAINED: True given, but timm has no weights of {model}; "
            f"a file in {key}, or TRUNK_PRETRAINED False expected"
        )
    if not config.hf_hub_id:
        return {"pretrained": True}
    cached = _cached_or_reachable(config, model, key)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": cached} if cached else None}


def _cached_or_reachable(config: Any, model: str, key: str) -> str | None:
    """Return the cached file of the hub; None if the hub has to be asked and answers.

    Raises:
        ValueError: If the hub does not answer. timm would try for a minute, and log each time.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    repository, _, revision = config.hf_hub_id.partition("@")
    names = [config.hf_hub_filename] if config.hf_hub_filename else FILE_NAMES
    for name in names:
        found = try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(found, str):
            return found
    reason = ""
    for name in names:
        url = hf_hub_url(repository, name, revision=revision or None)
        try:
            get_hf_file_metadata(url, timeout=10)
        except Exception as error:  # the hub's client has no common error for what goes wrong
            reason = reason or f"{url} cannot be reached: {' '.join(str(error).split())[:100]}"
        else:
            return None
    raise ConfigError(
        f"MODEL.SPATIALFLOW.TRUNK_PRETRAINED: timm's weights of {model} are not in the user's "
        f"cache, and {reason}; a file of them in {key}, or TRUNK_PRETRAINED False expected"
    )


def pretrained_weights(
    timm: ModuleType, model: str, options: Mapping[str, Any], file: str, check_weights: bool = True
) -> dict[str, Tensor]:
    """Return the pretrained tensors of a timm model that returns its feature maps.

    Args:
        timm: The package.
        model: Name of the model.
        options: Options of :func:`weights_options`.
        file: File that they were made of; "" for the cache or the hub.
        check_weights: Whether to compare checksums, and to look for numbers that are not finite.

    Raises:
        ConfigError: If they cannot be loaded, lack a tensor, or are integers. timm takes what fits,
            and leaves the rest as it is.
        CheckpointError: If they are damaged or not finite.
    """
    place = str((options.get("pretrained_cfg_overlay") or {}).get("file", ""))
    if check_weights and place:
        check_archive(place)
    try:
        with _Copies() as copies:
            network = create_network(timm, model, **options)
        state: dict[str, Tensor] = network.state_dict()
        absent = [n for n, v in state.items() if v.is_floating_point() and v not in copies]
        if absent:
            raise ValueError(f"{len(absent)} tensors are missing, the first is {absent[0]}")
        if copies.wrong_types:
            raise ValueError(f"floating-point numbers expected, {copies.wrong_types[0]} found")
    except Exception as error:  # files of other models and broken ones raise almost anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"MODEL.SPATIALFLOW.TRUNK_WEIGHTS: {file}: not weights of {model}: {reason}"
            if file
            else f"MODEL.SPATIALFLOW.TRUNK_PRETRAINED: timm's weights of {model} cannot be loaded: "
            f"{reason}; a file of them in TRUNK_WEIGHTS, or TRUNK_PRETRAINED False expected"
        ) from error
    if check_weights:
        check_finite(place or f"timm's weights of {model}", state.items())
    logger.info("Trunk %s starts from pretrained weights: %s", model, file or "timm's")
    return state


class _Copies(TorchDispatchMode):
    """Knows the tensors that were copied into, as ``load_state_dict`` does, and from what types.

    Attributes:
        wrong_types: Types that are not floating-point, copied into floating-point tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._filled: set[int] = set()
        self.wrong_types: list[torch.dtype] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and note the target of a copy."""
        if func is torch.ops.aten.copy_.default:
            self._filled.add(args[0].untyped_storage()._cdata)
            if args[0].is_floating_point() and not args[1].is_floating_point():
                self.wrong_types.append(args[1].dtype)
        return func(*args, **(kwargs or {}))

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._filled
