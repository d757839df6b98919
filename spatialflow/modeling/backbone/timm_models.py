"""Models of timm, and their weights: of a given file, the user's cache, or timm's hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

from spatialflow.utils.errors import ConfigError

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
        if not Path(file).expanduser().is_file():
            raise ConfigError(f"{key}: no such file: {file!r}")
        return {
            "pretrained": True,
            "pretrained_cfg_overlay": {"file": str(Path(file).expanduser())},
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
    url = hf_hub_url(repository, names[0], revision=revision or None)
    try:
        get_hf_file_metadata(url, timeout=10)
    except Exception as error:  # the hub's client has no common error for what goes wrong
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"MODEL.SPATIALFLOW.TRUNK_PRETRAINED: timm's weights of {model} are not in the cache "
            f"of {repository}, and {url} cannot be reached ({reason}); a file of them in {key}, "
            "or TRUNK_PRETRAINED False expected"
        ) from error
    return None
