"""The branches of SpatialFlow, their nodes, and the choices that a genotype may make for them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from darts.genotype import Genotype, GenotypeError
from darts.space import Branch, Node, Topology
from spatialflow.config.options import ATTENTION_OPTIONS, ATTENTION_SITES, NODE_CONVS


def spatialflow_topology(
    *,
    box_levels: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
    stuff_levels: Sequence[str] = ("p3", "p4", "p5"),
    mask_levels: Sequence[str] = ("p3", "p4", "p5"),
    region_levels: Sequence[str] = (),
    stages: int = 4,
) -> Topology:
    """Return SpatialFlow's branches in the order in which they run: box, stuff, mask, cls.

    A region branch, whose output the second box stage pools, runs before the mask branch.

    Args:
        box_levels: Pyramid levels of the box branch and of the cls branch.
        stuff_levels: Pyramid levels of the stuff branch.
        mask_levels: Pyramid levels of the mask branch.
        region_levels: Pyramid levels of the region branch; none for a network without it.
        stages: Number of nodes in the box, stuff and cls branches. The mask and region branches
            have one node, at the last stage.
    """
    region = [Branch("region", 1, tuple(region_levels), first_stage=stages)]
    return Topology(
        [
            Branch("box", stages, tuple(box_levels)),
            Branch("stuff", stages, tuple(stuff_levels)),
            *(region if region_levels else []),
            Branch("mask", 1, tuple(mask_levels), first_stage=stages),
            Branch("cls", stages, tuple(box_levels)),
        ]
    )


def topology_from_config(cfg: CfgNode) -> Topology:
    """Return the branches that a config describes.

    Args:
        cfg: A config. ``MODEL.RETINANET.IN_FEATURES``, ``MODEL.SEM_SEG_HEAD.IN_FEATURES`` and
            ``MODEL.SPATIALFLOW.MASK_IN_FEATURES`` are the levels of the branches,
            ``MODEL.RETINANET.NUM_CONVS`` is the number of stages. With
            ``MODEL.SPATIALFLOW.REGIONS`` there is a region branch on
            ``MODEL.ROI_HEADS.IN_FEATURES``.
    """
    regions = cfg.MODEL.ROI_HEADS
    return spatialflow_topology(
        box_levels=cfg.MODEL.RETINANET.IN_FEATURES,
        stuff_levels=cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES,
        mask_levels=cfg.MODEL.SPATIALFLOW.MASK_IN_FEATURES,
        region_levels=regions.IN_FEATURES if cfg.MODEL.SPATIALFLOW.REGIONS.ENABLED else (),
        stages=cfg.MODEL.RETINANET.NUM_CONVS,
    )


def default_option(choice: str) -> str:
    """Return the option of a choice that a genotype does not name."""
    return NODE_CONVS[0] if choice.endswith(".conv") else ATTENTION_OPTIONS[0]


def known_choices(topology: Topology) -> dict[str, tuple[str, ...]]:
    """Return choice → options, for the nodes' convolutions and the stuff head's attention."""
    known: dict[str, tuple[str, ...]] = dict.fromkeys(ATTENTION_SITES, ATTENTION_OPTIONS)
    return known | {conv_choice(node): NODE_CONVS for node in topology.nodes}


def check_choices(genotype: Genotype, topology: Topology) -> None:
    """Check that every choice of a genotype is known and has a known option.

    Raises:
        ValueError: If one is unknown; names the first of them and what is expected.
    """
    known = known_choices(topology)
    for name, option in genotype.choices.items():
        if option not in known.get(name, ()):
            expected = (
                list(known[name])
                if name in known
                else f"choice {[*ATTENTION_SITES, '<node>.conv']}"
            )
            raise GenotypeError(
                f"genotype {genotype.name!r}: choice {name!r}: {option!r} cannot be built, one of "
                f"{expected} expected"
            )


def conv_choice(node: Node) -> str:
    """Return the name of the choice of a node's convolution, such as ``cls.1.conv``."""
    return f"{node.name}.conv"
