"""Residual branches: the output of a branch with the pyramid map it started from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SCALE = 0.125
"""Initial scale of "learned": maps of a pyramid on a pretrained trunk are about 8 times as large as
outputs of a branch."""


class PyramidResidual(nn.Module):
    """Add pyramid maps to the outputs of branches (residual connections, arXiv 1512.03385).

    A pyramid on a pretrained trunk carries objects from the first step on; the convolutions of a
    branch and its flows start at random. At full scale the pyramid would hide them.
    """

    def __init__(self, kind: str, branches: Iterable[str]) -> None:
        """Keep the branches, and build their scales.

        Args:
            kind: ``rms`` adds P / rms(P), with the root of the mean square over the C channels at
                each position (RMSNorm, arXiv 1910.07467), so that padding has no effect;
                ``learned`` adds P times a learned scale of the branch.
            branches: Names of the branches.
        """
        super().__init__()
        self.branches = tuple(branches)
        self.scales = nn.ParameterDict()
        if kind == "learned":
            self.scales.update({name: nn.Parameter(torch.tensor(SCALE)) for name in self.branches})

    def forward(
        self, outputs: Mapping[str, dict[str, Tensor]], pyramid: Mapping[str, Tensor]
    ) -> dict[str, dict[str, Tensor]]:
        """Return the outputs of all branches: branch → level → (N, C, H, W).

        Args:
            outputs: Outputs of the flow graph, branch → level → (N, C, H, W).
            pyramid: Level → (N, C, H, W).
        """
        added = dict(outputs)
        for name in self.branches:
            added[name] = {
                level: x + self._scaled(name, pyramid[level]) for level, x in outputs[name].items()
            }
        return added

    def _scaled(self, branch: str, x: Tensor) -> Tensor:
        if branch in self.scales:
            return x * self.scales[branch]
        mean_square = x.float().square().mean(dim=1, keepdim=True)
        return x * (mean_square + 1e-6).rsqrt().to(x)
