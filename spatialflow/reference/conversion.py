"""Convert checkpoints of the authors' SpatialFlow code into the names and orders of this project.

Besides the names, three things differ:

* **Anchors**: the authors order the anchors of a location by ratio, then by scale. Detectron2
  orders them by size, then by ratio. The channels of the box predictors follow this order.
* **Stuff classes**: the authors' class "things-other" has the index ``things_other_index`` (36 of
  54 in the released COCO models). Here class 0 is "things", and the others follow in their order.
* **BatchNorm counters** (``num_batches_tracked``) are dropped, unless the model has such a counter.

The input is RGB, in the authors' code and in the reference configs.

A: anchors per location, the number of sizes times the number of ratios.
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
from spatialflow.utils.errors import CheckpointError, ConfigError
from spatialflow.utils.files import why_no_file
from spatialflow.utils.weights import check_archive, check_state, check_tensors

COCO_STUFF_OUTPUTS = 54
"""Number of stuff outputs of the released COCO models: 53 stuff classes and things-other."""

COCO_THINGS_OTHER_INDEX = 36
"""Index of things-other in the released COCO models."""

_COUNTER = ".num_batches_tracked"
_BOXES = "bbox_head.retina_reg"
_CLASSES = "bbox_head.retina_cls"
_STUFF = "stuff_head.conv"
_DEFORMABLE_CHANNELS = 27


def default_things_other_index(stuff_outputs: int) -> int | None:
    """Return the index of things-other for COCO's 54 stuff outputs, None for other numbers."""
    return COCO_THINGS_OTHER_INDEX if stuff_outputs == COCO_STUFF_OUTPUTS else None


def anchor_order(num_sizes: int, num_ratios: int) -> list[int]:
    """Return the index in the authors' order of each anchor in Detectron2's order.

    Args:
        num_sizes: Number of anchor sizes (scales) per location.
        num_ratios: Number of aspect ratios per location.
    """
    return [ratio * num_sizes + size for size in range(num_sizes) for ratio in range(num_ratios)]


def stuff_order(stuff_outputs: int, things_other_index: int) -> list[int]:
    """Return the index in the authors' order of each stuff class of this project (0 is "things").

    Args:
        stuff_outputs: Number of stuff outputs, including things-other.
        things_other_index: Index of things-other in the authors' order.

    Raises:
        ConfigError: If no stuff output has this index.
    """
    if not 0 <= things_other_index < stuff_outputs:
        raise ConfigError(
            f"things-other index: got {things_other_index}, expected 0 to {stuff_outputs - 1} "
            f"(the checkpoint has {stuff_outputs} stuff outputs)"
        )
    others = [index for index in range(stuff_outputs) if index != things_other_index]
    return [things_other_index, *others]


def permute_anchors(values: Tensor, num_sizes: int, num_ratios: int, dim: int = 0) -> Tensor:
    """Reorder channels from the authors' anchor order to Detectron2's.

    Args:
        values: Tensor with A * n channels in dimension ``dim``, n values per anchor.
        num_sizes: Number of anchor sizes (scales) per location.
        num_ratios: Number of aspect ratios per location.
        dim: Dimension of the channels.

    Returns:
        Tensor of the same shape.

    Raises:
        ConfigError: If the number of channels is not a multiple of A.
    """
    anchors = num_sizes * num_ratios
    channels = values.shape[dim]
    if channels % anchors:
        raise ConfigError(
            f"box predictor: got {channels} channels, expected a multiple of {anchors} anchors "
            "(MODEL.ANCHOR_GENERATOR.SIZES times ASPECT_RATIOS)"
        )
    order = torch.tensor(anchor_order(num_sizes, num_ratios), device=values.device)
    return values.unflatten(dim, (anchors, -1)).index_select(dim, order).flatten(dim, dim + 1)


@dataclass(frozen=True)
class ReferenceLayout:
    """Orders of the channels in the authors' box and stuff predictors.

    Attributes:
        num_sizes: Number of anchor sizes (scales) per location.
        num_ratios: Number of aspect ratios per location.
        things_other_index: Index of things-other among the authors' stuff classes.
    """

    num_sizes: int
    num_ratios: int
    things_other_index: int

    @classmethod
    def from_config(
        cls, cfg: CfgNode, reference: Mapping[str, Tensor], things_other_index: int
    ) -> ReferenceLayout:
        """Read the anchors of a config, and check that anchors and classes fit a checkpoint.

        Args:
            cfg: Config of the model that receives the weights.
            reference: Tensors of the checkpoint, by the authors' names.
            things_other_index: Index of things-other among the authors' stuff classes.

        Raises:
            ConfigError: If the config's input is not RGB, or its anchors or class counts differ
                from those of the checkpoint.
        """
        if cfg.INPUT.FORMAT != "RGB":
            raise ConfigError(f"INPUT.FORMAT: got {cfg.INPUT.FORMAT!r}, expected 'RGB'")
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
                raise ConfigError(
                    f"{key}: got {given}, expected {channels / values:g} "
                    f"({tensor} of the checkpoint has {channels} outputs)"
                )
        stuff_order(stuff_outputs(reference), things_other_index)
        return cls(num_sizes, num_ratios, things_other_index)

    def reorder(self, name: str, value: Tensor) -> Tensor | None:
        """Return a tensor in this project's order, or None if both orders are the same.

        Args:
            name: This project's name of the tensor.
            value: Tensor in the authors' order.
        """
        if name.startswith(("box_head.cls_score.", "box_head.bbox_pred.")):
            return permute_anchors(value, self.num_sizes, self.num_ratios)
        if name.startswith("stuff_head.predictor."):
            return value[stuff_order(value.shape[0], self.things_other_index)]
        return None


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Attributes:
        state: State dict of this project's model.
        permuted: This project's names of the tensors whose channels were reordered.
        dropped: Authors' names of the tensors that were left out.
    """

    state: dict[str, Tensor]
    permuted: tuple[str, ...]
    dropped: tuple[str, ...]

    def summary(self) -> str:
        """Return the numbers of converted, reordered and dropped tensors as one line of text."""
        return (
            f"{len(self.state)} tensors placed ({len(self.permuted)} of them with channels "
            f"reordered), {len(self.dropped)} BatchNorm counters dropped"
        )


def read_reference_checkpoint(path: str | Path, *, check_weights: bool = True) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint of the authors' code.

    Args:
        path: File of ``torch.save`` with tensors by name, at the top level or under
            ``state_dict``.
        check_weights: Whether to compare checksums, and to look for numbers that are not finite.

    Returns:
        Tensors by name, without the prefix ``module.``.

    Raises:
        CheckpointError: If the file cannot be read or has other content; the message names it.
    """
    path = Path(path)
    message = why_no_file(path)
    if message is not None:
        raise CheckpointError(f"checkpoint {path}: {message}")
    if check_weights:
        check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"checkpoint {path}: not readable as a file of tensors by torch.save: it is cut off, "
            f"of another kind, or holds other Python objects ({reason})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"checkpoint {path}: expected names and tensors, found none")
    foreign = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"checkpoint {path}: expected only tensors (or a `state_dict` of them), "
            f"but these are not: {', '.join(foreign[:10])}"
        )
    tensors = {str(name).removeprefix("module."): value for name, value in state.items()}
    check_state(path, tensors, finite=check_weights)
    return tensors


def stuff_outputs(reference: Mapping[str, Tensor]) -> int:
    """Return the number of stuff outputs of a checkpoint of the authors' code.

    Raises:
        ValueError: If the checkpoint has no stuff predictor.
    """
    return _output_channels(reference, _STUFF)


def _output_channels(reference: Mapping[str, Tensor], layer: str) -> int:
    name = f"{layer}.weight"
    if name not in reference:
        raise CheckpointError(
            f"the checkpoint has no `{name}`: it is not one of the authors' SpatialFlow code"
        )
    return reference[name].shape[0]


def convert_reference(
    reference: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    layout: ReferenceLayout,
) -> Conversion:
    """Convert a state dict of the authors' code into a state dict of this project.

    Args:
        reference: Tensors of the checkpoint, by the authors' names.
        model_state: ``state_dict()`` of the model that receives the weights; only names and shapes
            are used.
        layout: Orders of the channels in the authors' box and stuff predictors.

    Raises:
        CheckpointError: If the checkpoint does not fit the model. The message lists every tensor
            without a place, every parameter without a value, and every shape that differs.
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
        raise CheckpointError(_problems(reference, unplaced, missing, list(mismatched.values())))
    check_tensors("the checkpoint", state, model_state, finite=False)
    return Conversion(state=state, permuted=tuple(permuted), dropped=tuple(dropped))


# Tensors of the model that the config sets.
_CONSTANTS = {"pixel_mean", "pixel_std"}


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
    """Return whether a checkpoint of the authors' code belongs to the deformable model."""
    return any(
        "conv_offset" in name or ("_spatial_flow_convs." in name and _predicts_offsets(value))
        for name, value in reference.items()
    )


def _predicts_offsets(value: Tensor) -> bool:
    return value.dim() == 4 and value.shape[0] == _DEFORMABLE_CHANNELS != value.shape[1]
