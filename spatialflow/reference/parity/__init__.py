"""Check that this network computes the same values as the authors' code, given a fixture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from spatialflow.reference.conversion import (
    Conversion,
    ReferenceLayout,
    convert_reference,
    default_things_other_index,
    stuff_outputs,
)
from spatialflow.reference.parity.fixture import Fixture, read_fixture
from spatialflow.reference.parity.fusion import check_fusion
from spatialflow.reference.parity.network import check_final, check_network
from spatialflow.reference.parity.table import COMPACT, FULL, Row, format_table, rows_not_compared
from spatialflow.reference.parity.training import check_training

__all__ = ["ParityResult", "check_parity", "format_table", "read_fixture", "things_other_index"]


@dataclass(frozen=True)
class ParityResult:
    """Result of a parity check.

    Attributes:
        rows: Rows of the table, one per comparison.
        conversion: The converted checkpoint.
        things_other_index: Index of things-other among the authors' stuff classes.
        compact: Whether the fixture is compact, with rounded weights.
    """

    rows: list[Row]
    conversion: Conversion
    things_other_index: int
    compact: bool

    @property
    def holds(self) -> bool:
        """Whether every row holds."""
        return all(row.holds for row in self.rows)


def check_parity(
    fixture: Fixture, cfg: CfgNode, *, things_other: int | None = None
) -> ParityResult:
    """Convert a fixture's checkpoint, and compare all values of the fixture.

    Args:
        fixture: Checkpoint and values of the authors' code.
        cfg: Config of the model, which runs on the CPU.
        things_other: Index of things-other among the authors' stuff classes; None finds it with
            :func:`things_other_index`.

    Raises:
        ValueError: If the fixture lacks an array or the checkpoint does not fit the model.
    """
    if things_other is None:
        things_other = things_other_index(fixture)
    layout = ReferenceLayout.from_config(cfg, fixture.checkpoint, things_other)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model: nn.Module = build_model(cfg)
    conversion = convert_reference(fixture.checkpoint, model.state_dict(), layout)
    model.load_state_dict(conversion.state, strict=False)
    limits = COMPACT if fixture.compact else FULL
    rows = check_network(model, fixture, layout, limits)
    rows += check_final(model, fixture, limits)
    rows += check_training(model, fixture, layout, limits, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    rows += check_fusion(fixture, layout, stuff_outputs(fixture.checkpoint))
    rows += rows_not_compared(fixture)
    return ParityResult(rows, conversion, things_other, fixture.compact)


def things_other_index(fixture: Fixture) -> int:
    """Return the index of things-other among the authors' stuff classes.

    If all thing masks of the training ground truth lie on one stuff label, it is this label.
    Otherwise it is 36 for a model with 54 stuff outputs, and the last index for other models.
    """
    if "train.gt_masks" in fixture and "train.gt_semantic" in fixture:
        things = fixture.arrays["train.gt_masks"].astype(bool).any(axis=0)
        labels = np.unique(fixture.arrays["train.gt_semantic"][things])
        labels = labels[labels != 255]
        if len(labels) == 1:
            return int(labels[0])
    outputs = stuff_outputs(fixture.checkpoint)
    default = default_things_other_index(outputs)
    return outputs - 1 if default is None else default
