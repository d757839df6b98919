#!/usr/bin/env python
"""Draw docs/images/architecture.{svg,png}: four branches, the flows of a genotype, heads, fusion.

python docs/figures/draw_architecture.py
"""

from __future__ import annotations

from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from darts.genotype import Flow, Genotype
from spatialflow.config import load_genotype
from spatialflow.data.synthetic.scenes import SCENE_CATEGORIES, generate_scene

IMAGES = Path(__file__).resolve().parents[1] / "images"
COLORS = {"cls": "#b4532a", "box": "#1f6f8b", "stuff": "#4b7f3a", "mask": "#7a4b9a"}
LANES = {"cls": 3.0, "box": 2.0, "stuff": 1.0, "mask": 0.0}
LANE_HEIGHT = 1.62
LEVELS = {"cls": "P3–P7", "box": "P3–P7", "stuff": "P3–P5", "mask": "P3–P5"}
INK, GREY, PALE, PAPER = "#22262b", "#6b7480", "#eef1f4", "#ffffff"
# Width and height of a node, and distance between two nodes of a branch.
NODE = (0.98, 0.74)
STEP = 2.18
FIRST = 6.1
# Shift of a branch to the right of the branches whose flows it receives.
LAG = 1.8
# Distance between two flows into one node, and radius of the symbol of an addition.
ARRIVAL = 0.5
PLUS = 0.17
RIGHT = 18.95
HEAD = (2.3, 0.9)
TEXT, SMALL = 11.0, 9.5


def node_x(name: str) -> float:
    """Return the horizontal centre of a node."""
    branch, index = name.split(".")
    stage = 4 if branch == "mask" else int(index)
    lag = {"box": 0.0, "cls": LAG, "stuff": LAG, "mask": 2 * LAG + ARRIVAL}[branch]
    return FIRST + STEP * (stage - 1) + lag


def lane_y(branch: str) -> float:
    """Return the vertical centre of a branch."""
    return LANES[branch] * LANE_HEIGHT


def arrivals(genotype: Genotype) -> dict[Flow, float]:
    """Return the horizontal position at which each flow is added to its target's input.

    Of two flows into one node, that from the farther branch is added closer to the node.
    """
    places = {}
    for target in {flow.target for flow in genotype.flows}:
        flows = [flow for flow in genotype.flows if flow.target == target]
        y = lane_y(target.split(".")[0])
        flows.sort(key=lambda flow: -abs(lane_y(flow.source.split(".")[0]) - y))
        for i, flow in enumerate(flows):
            places[flow] = node_x(target) - NODE[0] / 2 - 0.36 - ARRIVAL * i
    return places


def box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str, **style: object
) -> None:
    """Draw a rounded box around a centre."""
    options = {"facecolor": PALE, "edgecolor": GREY, "linewidth": 1.2, **style}
    color = options.pop("color", INK)
    size = options.pop("fontsize", TEXT)
    patch = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.1",
        zorder=3,
        **options,
    )
    ax.add_patch(patch)
    ax.text(x, y, text, ha="center", va="center", fontsize=size, color=color, zorder=4)


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = GREY,
    **style: object,
) -> None:
    """Draw an arrow; with ``rim=True`` it covers the lines that it crosses."""
    options = {"connectionstyle": "arc3,rad=0", "linewidth": 1.4, "zorder": 2, **style}
    if options.pop("rim", False):
        cover = {**options, "linewidth": 5.0, "arrowstyle": "-", "color": PAPER}
        ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **cover))
    options |= {"arrowstyle": "-|>", "color": color, "mutation_scale": 11}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **options))


def draw_branch(ax: Axes, branch: str) -> None:
    """Draw a branch's chain of nodes from the pyramid to its end."""
    y, color = lane_y(branch), COLORS[branch]
    names = ["mask.1"] if branch == "mask" else [f"{branch}.{i}" for i in range(1, 5)]
    previous = 3.45
    for name in names:
        x = node_x(name)
        arrow(ax, (previous, y), (x - NODE[0] / 2, y), color)
        box(ax, x, y, *NODE, name, facecolor=color, edgecolor=color, color=PAPER, fontsize=10)
        previous = x + NODE[0] / 2
    arrow(ax, (previous, y), (RIGHT - HEAD[0] / 2, y), color)
    ax.text(3.6, y + 0.14, branch, fontsize=13, color=color, weight="bold", va="bottom")
    ax.text(3.6, y - 0.14, LEVELS[branch], fontsize=SMALL, color=GREY, va="top")


def draw_plus(ax: Axes, x: float, y: float, color: str) -> None:
    """Draw the symbol of an addition."""
    ax.add_patch(Circle((x, y), PLUS, facecolor=PAPER, edgecolor=color, lw=1.4, zorder=5))
    for dx, dy in ((0.1, 0), (0, 0.1)):
        ax.plot([x - dx, x + dx], [y - dy, y + dy], color=INK, lw=1.4, zorder=6)


def draw_flow(ax: Axes, flow: Flow, x: float) -> None:
    """Draw a flow from its source's output to its target's input, where it is added."""
    source, target = flow.source.split(".")[0], flow.target.split(".")[0]
    start = (node_x(flow.source) + NODE[0] / 2 + 0.08, lane_y(source))
    upwards = lane_y(target) > lane_y(source)
    draw_plus(ax, x, lane_y(target), COLORS[target])
    end = (x, lane_y(target) + (-PLUS if upwards else PLUS))
    ax.add_patch(Circle(start, 0.07, color=COLORS[source], zorder=6))
    # The flow leaves along its branch and arrives from above or below.
    style = f"angle,angleA=0,angleB={90 if upwards else -90},rad=14"
    arrow(ax, start, end, COLORS[source], connectionstyle=style, linewidth=2.2, zorder=2.5)


def draw_picture(ax: Axes, picture: np.ndarray, left: float, title: str) -> None:
    """Draw a picture and its title in the middle of the figure's height."""
    middle, half = 1.5 * LANE_HEIGHT, 0.9
    extent = (left, left + 2 * half, middle - half, middle + half)
    ax.imshow(picture, extent=extent, zorder=3)
    ax.text(left + half, extent[2] - 0.15, title, ha="center", va="top", fontsize=TEXT, color=GREY)


def draw_trunk(ax: Axes, image: np.ndarray) -> None:
    """Draw image, ResNet and pyramid."""
    middle = 1.5 * LANE_HEIGHT
    draw_picture(ax, image, -1.45, "image")
    arrow(ax, (0.35, middle), (0.72, middle))
    for i, (half_height, label) in enumerate(((1.25, "C3"), (0.95, "C4"), (0.65, "C5"))):
        box(ax, 0.92 + 0.5 * i, middle, 0.44, 2 * half_height, label, fontsize=SMALL)
    ax.text(1.42, middle - 1.4, "ResNet", ha="center", va="top", fontsize=TEXT, color=GREY)
    arrow(ax, (2.14, middle), (2.44, middle))
    for i, level in enumerate(("P7", "P6", "P5", "P4", "P3")):
        y = middle + 1.16 - 0.58 * i
        box(ax, 2.8, y, 0.44 + 0.06 * i, 0.46, level, fontsize=SMALL)
    ax.text(2.8, middle - 1.55, "FPN", ha="center", va="top", fontsize=TEXT, color=GREY)
    # One line from the pyramid to all branches.
    ax.plot([3.2, 3.45], [middle, middle], color=GREY, lw=1.4, zorder=2)
    ax.plot([3.45, 3.45], [lane_y("mask"), lane_y("cls")], color=GREY, lw=1.4, zorder=2)


def draw_heads(ax: Axes, segments: np.ndarray) -> None:
    """Draw predictors, detections, fusion and result."""
    for branch, text in (
        ("cls", "class scores\nfocal loss"),
        ("box", "box deltas\nL1 loss"),
        ("stuff", "stuff head\ncross-entropy"),
        ("mask", "mask head\ncross-entropy"),
    ):
        box(ax, RIGHT, lane_y(branch), *HEAD, text, edgecolor=COLORS[branch], facecolor=PAPER)
    edge = RIGHT + HEAD[0] / 2
    detections = (edge + 1.45, 2.5 * LANE_HEIGHT)
    fusion = (edge + 3.6, 1.5 * LANE_HEIGHT)
    box(ax, *detections, 1.75, HEAD[1], "detections\nNMS", edgecolor=INK)
    box(ax, *fusion, 1.5, 1.1, "panoptic\nfusion", edgecolor=INK)
    # The boxes' arrow to the mask head passes the stuff head's arrow to the fusion.
    bottom = (detections[0] + 0.3, detections[1] - HEAD[1] / 2)
    above, below = detections[1] + HEAD[1] / 2, detections[1] - HEAD[1] / 2
    for start, end, angles in (
        ((edge, lane_y("cls")), (detections[0] - 0.4, above), (0, 90)),
        ((edge, lane_y("box")), (detections[0] - 0.4, below), (0, -90)),
        ((edge, lane_y("stuff")), (fusion[0] - 0.4, fusion[1] - 0.55), (0, -90)),
        (bottom, (edge, lane_y("mask") + 0.2), (-90, 0)),
        ((detections[0] + 0.875, detections[1]), (fusion[0], fusion[1] + 0.55), (0, 90)),
        ((edge, lane_y("mask") - 0.2), (fusion[0] + 0.2, fusion[1] - 0.55), (0, -90)),
    ):
        style = f"angle,angleA={angles[0]},angleB={angles[1]},rad=12"
        arrow(ax, start, end, INK, connectionstyle=style, rim=True)
    ax.text(bottom[0] - 0.12, 0.62, "boxes", fontsize=SMALL, color=GREY, ha="right", va="center")
    x = fusion[0] + 1.2
    arrow(ax, (fusion[0] + 0.75, fusion[1]), (x, fusion[1]), INK)
    draw_picture(ax, segments, x, "segments")


def draw_legend(ax: Axes) -> None:
    """Draw the legend of the symbols."""
    y = -1.25
    style = {"va": "center", "fontsize": TEXT, "color": INK}
    box(ax, 4.1, y, *NODE, "box.1", facecolor=COLORS["box"], edgecolor=COLORS["box"], color=PAPER)
    ax.text(4.75, y, "node: 3×3 convolution, ReLU", **style)
    arrow(ax, (10.0, y), (10.9, y), COLORS["box"], linewidth=2.2)
    ax.text(11.1, y, "flow: a line of the genotype (JSON)", **style)
    draw_plus(ax, 17.7, y, GREY)
    ax.text(18.05, y, "port input: added to the node's input", **style)


def scene_pictures() -> tuple[np.ndarray, np.ndarray]:
    """Return a generated scene, and its ground truth in the classes' colours."""
    scene = generate_scene(11, 4)
    colors = {category["id"]: category["color"] for category in SCENE_CATEGORIES}
    painted = np.zeros_like(scene.image)
    for segment in scene.segments:
        where = (scene.ids == segment["id"]).astype(np.uint8)
        painted[where == 1] = colors[segment["category_id"]]
        rim = where - cv2.erode(where, np.ones((3, 3), np.uint8))
        painted[rim == 1] = 255
    return scene.image, painted


def main() -> None:
    """Draw and save the figure."""
    mpl.rcParams |= {"font.family": "DejaVu Sans", "svg.hashsalt": "architecture"}
    genotype = load_genotype("spatialflow")
    figure = Figure(figsize=(14.5, 3.85), facecolor=PAPER)
    ax = figure.add_axes((0, 0, 1, 1))
    image, segments = scene_pictures()
    draw_trunk(ax, image)
    for branch in LANES:
        draw_branch(ax, branch)
    for flow, x in arrivals(genotype).items():
        draw_flow(ax, flow, x)
    draw_heads(ax, segments)
    draw_legend(ax)
    ax.set_xlim(-1.6, 26.75)
    ax.set_ylim(-1.75, 5.65)
    ax.set_aspect("equal")
    ax.axis("off")
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / "architecture.svg", metadata={"Date": None})
    figure.savefig(IMAGES / "architecture.png", dpi=120)


if __name__ == "__main__":
    main()
