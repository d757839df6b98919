"""Translate names of tensors in the authors' SpatialFlow code into names of this project."""

from __future__ import annotations

import re
from collections.abc import Callable

_FPN_FIRST_LEVEL = 3
_BRANCHES = {"reg": "box", "cls": "cls", "stuff": "stuff", "mask": "mask"}


def _block(stage: int, block: int) -> str:
    return f"backbone.bottom_up.res{stage + 1}.{block}"


def _flow(source: str, target: str, field: str) -> str:
    return f"flow_graph.flows.{source}_to_{target}_input.conv.{field}"


def _scale_head(index: int, layer: int) -> str:
    return f"stuff_head.scale_heads.p{_FPN_FIRST_LEVEL + index}.{layer}"


# Pattern of the authors' name → our name. Groups of digits are passed as int, others as str.
_RULES: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"backbone\.conv1\.weight", lambda: "backbone.bottom_up.stem.conv1.weight"),
    (r"backbone\.bn1\.(\w+)", lambda field: f"backbone.bottom_up.stem.conv1.norm.{field}"),
    (
        r"backbone\.layer(\d+)\.(\d+)\.conv(\d+)\.weight",
        lambda stage, block, conv: f"{_block(stage, block)}.conv{conv}.weight",
    ),
    (
        r"backbone\.layer(\d+)\.(\d+)\.bn(\d+)\.(\w+)",
        lambda stage, block, conv, field: f"{_block(stage, block)}.conv{conv}.norm.{field}",
    ),
    (
        r"backbone\.layer(\d+)\.(\d+)\.downsample\.0\.weight",
        lambda stage, block: f"{_block(stage, block)}.shortcut.weight",
    ),
    (
        r"backbone\.layer(\d+)\.(\d+)\.downsample\.1\.(\w+)",
        lambda stage, block, field: f"{_block(stage, block)}.shortcut.norm.{field}",
    ),
    (
        r"neck\.lateral_convs\.(\d+)\.conv\.(weight|bias)",
        lambda index, field: f"backbone.fpn_lateral{_FPN_FIRST_LEVEL + index}.{field}",
    ),
    (
        r"neck\.fpn_convs\.([012])\.conv\.(weight|bias)",
        lambda index, field: f"backbone.fpn_output{_FPN_FIRST_LEVEL + index}.{field}",
    ),
    (
        r"neck\.fpn_convs\.([34])\.conv\.(weight|bias)",
        lambda index, field: f"backbone.top_block.p{_FPN_FIRST_LEVEL + index}.{field}",
    ),
    (
        r"bbox_head\.(reg|cls|stuff|mask)_convs\.(\d+)\.conv\.(weight|bias)",
        lambda branch, index, field: f"flow_graph.nodes.{_BRANCHES[branch]}_{index + 1}.{field}",
    ),
    (
        r"bbox_head\.(cls|stuff)_spatial_flow_convs\.(\d+)\.conv\.(weight|bias)",
        lambda branch, index, field: _flow(
            f"box_{index + 1}", f"{_BRANCHES[branch]}_{index + 1}", field
        ),
    ),
    (
        r"bbox_head\.mask_spatial_flow_convs\.0\.conv\.(weight|bias)",
        lambda field: _flow("box_4", "mask_1", field),
    ),
    (
        r"bbox_head\.stuff_mask_flow_convs\.0\.conv\.(weight|bias)",
        lambda field: _flow("stuff_4", "mask_1", field),
    ),
    (r"bbox_head\.retina_cls\.(weight|bias)", lambda field: f"box_head.cls_score.{field}"),
    (r"bbox_head\.retina_reg\.(weight|bias)", lambda field: f"box_head.bbox_pred.{field}"),
    (
        r"mask_head\.convs\.(\d+)\.conv\.(weight|bias)",
        lambda index, field: f"mask_head.fcn.mask_fcn{index + 1}.{field}",
    ),
    (r"mask_head\.upsample\.(weight|bias)", lambda field: f"mask_head.fcn.deconv.{field}"),
    (r"mask_head\.conv_logits\.(weight|bias)", lambda field: f"mask_head.fcn.predictor.{field}"),
    (
        r"stuff_head\.lateral_convs\.(\d+)\.(\d+)\.conv\.weight",
        lambda index, layer: f"{_scale_head(index, layer)}.weight",
    ),
    (
        r"stuff_head\.lateral_convs\.(\d+)\.(\d+)\.gn\.(weight|bias)",
        lambda index, layer, field: f"{_scale_head(index, layer)}.norm.{field}",
    ),
    (r"stuff_head\.conv\.(weight|bias)", lambda field: f"stuff_head.predictor.{field}"),
)


# In the deformable model the flows from the box branch predict offsets; here nodes hold them.
_DEFORMABLE_RULES: tuple[tuple[str, Callable[..., str]], ...] = (
    (
        r"backbone\.layer(\d+)\.(\d+)\.conv2\.conv_offset\.(weight|bias)",
        lambda stage, block, field: f"{_block(stage, block)}.conv2.offset.{field}",
    ),
    (
        r"bbox_head\.(cls|stuff)_spatial_flow_convs\.(\d+)\.conv\.(weight|bias)",
        lambda branch, index, field: f"flow_graph.nodes.{branch}_{index + 1}.offset.{field}",
    ),
    (
        r"bbox_head\.mask_spatial_flow_convs\.0\.conv\.(weight|bias)",
        lambda field: f"flow_graph.nodes.mask_1.offset.{field}",
    ),
)


def our_name(reference_name: str, *, deformable: bool = False) -> str | None:
    """Return this project's name of a tensor of the authors' code, or None if it has none.

    Args:
        reference_name: Authors' name without ``module.``, such as
            ``bbox_head.reg_convs.0.conv.weight``.
        deformable: Whether the tensor belongs to the authors' deformable model, R101-DCN.
    """
    for pattern, build in (*_DEFORMABLE_RULES, *_RULES) if deformable else _RULES:
        match = re.fullmatch(pattern, reference_name)
        if match:
            return build(*(int(group) if group.isdigit() else group for group in match.groups()))
    return None
