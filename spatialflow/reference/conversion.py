"""Checkpoints of the authors' SpatialFlow code, brought into the names and orders of this project.

Three things differ beside the names:

* **anchors**: an output channel of their box predictors belongs to an anchor counted *for each
  ratio, for each scale*; Detectron2 counts *for each size, for each ratio*;
* **stuff classes**: their class "things-other" stands at ``things_other_index`` (36 of 54 in the
  released COCO models); here "things" is class 0 and the others follow in their order;
* **BatchNorm counters** (``num_batches_tracked``): dropped, unless the model keeps such a counter.

Their input is RGB, as is that of the reference configs.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from spatialflow.reference.names import our_name

COCO_STUFF_OUTPUTS = 54
"""Stuff outputs of the released COCO models: 53 stuff classes and things-other."""
COCO_THINGS_OTHER_INDEX = 36

_COUNTER = ".num_batches_tracked"
_BOXES = "bbox_head.retina_reg"
_CLASSES = "bbox_head.retina_cls"
_STUFF = "stuff_head.conv"
_DEFORMABLE_CHANNELS = 27


def default_things_other_index(stuff_outputs: int) -> int | None:
    """Return the index of things-other in the released COCO models, None for other models."""
    return COCO_THINGS_OTHER_INDEX if stuff_outputs == COCO_STUFF_OUTPUTS else None


def anchor_order(num_sizes: int, num_ratios: int) -> list[int]:
    """Return, for each anchor in Detectron2's order, its index in the authors' order.

    Args:
        num_sizes: anchor sizes (scales) per location.
        num_ratios: aspect ratios per location.
    """
    return [ratio * num_sizes + size for size in range(num_sizes) for ratio in range(num_ratios)]


def stuff_order(stuff_outputs: int, things_other_index: int) -> list[int]:
    """Return, for each stuff class here (0 is "things"), its index in the authors' order.

    Raises:
        ValueError: if there is no class with that index.
    """
    if not 0 <= things_other_index < stuff_outputs:
        raise ValueError(
            f"things-other index: got {things_other_index}, expected 0 to {stuff_outputs - 1} "
            f"(the checkpoint has {stuff_outputs} stuff outputs)"
        )
    others = [index for index in range(stuff_outputs) if index != things_other_index]
    return [things_other_index, *others]


def permute_anchors(values: Tensor, num_sizes: int, num_ratios: int, dim: int = 0) -> Tensor:
    """Bring anchor-major channels from the authors' anchor order into Detectron2's.

    Args:
        values: (..., A * n, ...) along ``dim``, with A = ``num_sizes * num_ratios``.
        num_sizes: anchor sizes per location.
        num_ratios: aspect ratios per location.
        dim: the dimension of the channels.

    Raises:
        ValueError: if the number of channels is no multiple of A.
    """
    anchors = num_sizes * num_ratios
    channels = values.shape[dim]
    if channels % anchors:
        raise ValueError(
            f"box predictor: got {channels} channels, expected a multiple of {anchors} anchors "
            "(MODEL.ANCHOR_GENERATOR.SIZES times ASPECT_RATIOS)"
        )
    order = torch.tensor(anchor_order(num_sizes, num_ratios), device=values.device)
    return values.unflatten(dim, (anchors, -1)).index_select(dim, order).flatten(dim, dim + 1)


@dataclass(frozen=True)
class ReferenceLayout:
    """What a tensor's name does not tell about the orders inside it."""

    num_sizes: int
    num_ratios: int
    things_other_index: int

    @classmethod
    def from_config(
        cls, cfg: CfgNode, reference: Mapping[str, Tensor], things_other_index: int
    ) -> ReferenceLayout:
        """Read the anchors of a config, after checking its class counts against a checkpoint.

        Args:
            cfg: describes the model to be filled.
            reference: names and tensors of the authors' code.
            things_other_index: of the authors' stuff classes.

        Raises:
            ValueError: if the config's input is not RGB, or its anchors or class counts are not
                those of the checkpoint.
        """
        if cfg.INPUT.FORMAT != "RGB":
            raise ValueError(f"INPUT.FORMAT: got {cfg.INPUT.FORMAT!r}, expected 'RGB'")
        generator = cfg.MODEL.ANCHOR_GENERATOR
        num_sizes, num_ratios = len(generator.SIZES[0]), len(generator.ASPECT_RATIOS[0])
        anchors = num_sizes * num_ratios
        for key, given, tensor, values in (
            ("MODEL.ANCHOR_GENERATOR, SIZES times ASPECT_RATIOS", anchors, _BOXES, 4),
            ("MODEL.RETINANET.NUM_CLASSES", cfg.MODEL.RETINANET.NUM_CLASSES, _CLASSES, anchors),
            ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, _STUFF, 1),
        ):
            channels = _output_channels(reference, tensor)
            if given * values != channels:
                raise ValueError(
                    f"{key}: got {given}, expected {channels / values:g} "
                    f"({tensor} of the checkpoint has {channels} outputs)"
                )
        stuff_order(stuff_outputs(reference), things_other_index)
        return cls(num_sizes, num_ratios, things_other_index)

    def reorder(self, name: str, value: Tensor) -> Tensor | None:
        """Return the tensor in this project's order, or None if the orders are the same.

        Args:
            name: the tensor's name in this project.
            value: the tensor in the authors' order.
        """
        if name.startswith(("box_head.cls_score.", "box_head.bbox_pred.")):
            return permute_anchors(value, self.num_sizes, self.num_ratios)
        if name.startswith("stuff_head.predictor."):
            return value[stuff_order(value.shape[0], self.things_other_index)]
        return None


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint; ``permuted`` are names of this project, ``dropped`` the authors'."""

    state: dict[str, Tensor]
    permuted: tuple[str, ...]
    dropped: tuple[str, ...]

    def summary(self) -> str:
        """Return one line for a person."""
        return (
            f"{len(self.state)} tensors placed ({len(self.permuted)} of them with channels "
            f"reordered), {len(self.dropped)} BatchNorm counters dropped"
        )


def read_reference_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of the authors' code.

    Args:
        path: a file by ``torch.save`` that holds names and tensors, at the top level or under
            ``state_dict``. A prefix ``module.`` is stripped.

    Raises:
        ValueError: if the file cannot be read as such; the message names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"checkpoint {path}: not readable as a file of tensors by torch.save: it is cut off, "
            f"of another kind, or holds other Python objects ({reason})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"checkpoint {path}: expected names and tensors, found none")
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ValueError(
            f"checkpoint {path}: expected only tensors (or a `state_dict` of them), "
            f"but these are not: {', '.join(foreign[:10])}"
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def stuff_outputs(reference: Mapping[str, Tensor]) -> int:
    """Return the number of stuff outputs of a checkpoint of the authors' code.

    Raises:
        ValueError: if it has no stuff predictor.
    """
    return _output_channels(reference, _STUFF)


def _output_channels(reference: Mapping[str, Tensor], layer: str) -> int:
    name = f"{layer}.weight"
    if name not in reference:
        raise ValueError(
            f"the checkpoint has no `{name}`: it is not one of the authors' SpatialFlow code"
        )
    return reference[name].shape[0]


def convert_reference(
    reference: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    layout: ReferenceLayout,
) -> Conversion:
    """Convert a state dict of the authors' code into one of ours.

    Args:
        reference: their names and tensors.
        model_state: ``state_dict()`` of the model to be filled; only names and shapes are used.
        layout: the orders inside the box and stuff predictors.

    Raises:
        ValueError: naming every tensor that could not be placed, every parameter that stayed
            without a value and every shape that differs.
    """
    state: dict[str, Tensor] = {}
    permuted, dropped, unplaced = [], [], []
    mismatched: dict[str, str] = {}
    deformable = is_deformable(reference)
    for name, value in reference.items():
        target = our_name(name, deformable=deformable)
        if name.endswith(_COUNTER) and target is not None and target not in model_state:
            dropped.append(name)
        elif target is None or target not in model_state:
            unplaced.append(name)
        elif value.shape != model_state[target].shape:
            mismatched[target] = (
                f"{name} {tuple(value.shape)} in the checkpoint, "
                f"{target} {tuple(model_state[target].shape)} in the model"
            )
        else:
            reordered = layout.reorder(target, value)
            if reordered is not None:
                permuted.append(target)
            state[target] = (value if reordered is None else reordered).clone()
    accounted = state.keys() | mismatched.keys() | _CONSTANTS
    missing = [name for name in model_state if name not in accounted]
    if unplaced or missing or mismatched:
        raise ValueError(_problems(reference, unplaced, missing, list(mismatched.values())))
    return Conversion(state=state, permuted=tuple(permuted), dropped=tuple(dropped))


_CONSTANTS = {"pixel_mean", "pixel_std"}  # set by the config, not by a checkpoint


def _problems(
    reference: Mapping[str, Tensor],
    unplaced: Sequence[str],
    missing: Sequence[str],
    mismatched: Sequence[str],
) -> str:
    lines = ["the checkpoint does not fit the model of the config:"]
    for title, names in (
        ("could not be placed", unplaced),
        ("parameters of the model without a value", missing),
        ("shapes differ", mismatched),
    ):
        if names:
            lines += [f"  {title} ({len(names)}):", *(f"    {name}" for name in names)]
    if is_deformable(reference):
        lines.append(
            "  the checkpoint is of the deformable model (R101-DCN): check "
            "MODEL.SPATIALFLOW.GENOTYPE spatialflow_deformable and "
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE [False,True,True,True]"
        )
    else:
        lines.append(
            "  check MODEL.RESNETS.{DEPTH,STEM_OUT_CHANNELS,RES2_OUT_CHANNELS,WIDTH_PER_GROUP,"
            "NORM}, MODEL.FPN.OUT_CHANNELS, MODEL.RETINANET.NUM_CLASSES, "
            "MODEL.SEM_SEG_HEAD.{NUM_CLASSES,CONVS_DIM} and MODEL.ROI_MASK_HEAD.CONV_DIM"
        )
    return "\n".join(lines)


def is_deformable(reference: Mapping[str, Tensor]) -> bool:
    """Tell whether a checkpoint of the authors' code is of the deformable model."""
    return any(
        "conv_offset" in name or ("_spatial_flow_convs." in name and _predicts_offsets(value))
        for name, value in reference.items()
    )


def _predicts_offsets(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[0] == _DEFORMABLE_CHANNELS != value.shape[1]
