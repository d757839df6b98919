"""Draw genotypes as SVG, or write them in the DOT language of Graphviz."""

from __future__ import annotations

import html
from collections.abc import Sequence

from darts.genotype import Flow, Genotype
from darts.space import Topology

STYLES = {
    "identity": ("#777777", "2 3"),
    "conv_1x1": ("#1b7f79", ""),
    "conv_3x3": ("#b3471d", ""),
    "sep_conv_3x3": ("#5d4bb0", ""),
    "dil_conv_3x3": ("#9a2f7c", "8 3"),
    "channel_gate": ("#8a6d00", "6 2 1 2"),
    "spatial_gate": ("#2f6db0", "6 2 1 2"),
}
"""Operation → colour and dash pattern of its line; the pattern is for readers who see no hue."""

COLUMN, ROW, LEFT, TOP = 170, 92, 96, 64
NODE_WIDTH, NODE_HEIGHT = 84, 34


def to_svg(genotype: Genotype, topology: Topology) -> str:
    """Draw a genotype: branches as rows, stages as columns, flows as curves from node to node.

    The colours can be read on a white and on a black page.

    Args:
        genotype: The genotype.
        topology: Branches and nodes of the network.

    Returns:
        SVG document.
    """
    ranks = {branch.name: i for i, branch in enumerate(topology.branches)}
    stages = sorted({node.stage for node in topology.nodes})
    columns = {stage: i for i, stage in enumerate(stages)}
    centers: dict[str, tuple[float, float]] = {
        node.name: (
            LEFT + COLUMN * columns[node.stage] + NODE_WIDTH / 2,
            TOP + ROW * ranks[node.branch.name],
        )
        for node in topology.nodes
    }
    used = [name for name in STYLES if any(flow.operation == name for flow in genotype.flows)]
    width = LEFT + COLUMN * (len(stages) - 1) + NODE_WIDTH + 80
    height = TOP + ROW * len(ranks) + 22 * max(1, (len(used) + 1) // 2)
    title = f"{genotype.name}: {len(genotype.flows)} flows"
    parts = [
        *_head(width, height, title),
        f'<text x="{LEFT}" y="24" font-size="15">{_escape(title)}</text>',
        f'<text x="{LEFT + 200}" y="24" font-size="12">{_escape(_choices(genotype))}</text>',
        *_markers(used),
    ]
    for branch, rank in ranks.items():
        parts.append(f'<text x="12" y="{TOP + ROW * rank + 5}">{_escape(branch)}</text>')
    parts += [
        _chain(centers[f"{node.branch.name}.{node.index - 1}"], centers[node.name])
        for node in topology.nodes
        if node.index > 1
    ]
    parts += [_curve(flow, genotype.flows, centers) for flow in genotype.flows]
    parts += [_box(name, *center) for name, center in centers.items()]
    parts += _legend(used, TOP + ROW * len(ranks) - 22)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _escape(text: str) -> str:
    """Return a text for XML, which takes no control characters and no lone surrogates."""
    return html.escape(_printable(text))


def _printable(text: str) -> str:
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _choices(genotype: Genotype) -> str:
    """Return the choices as text, without those whose option is ``none`` or ``plain``."""
    chosen = {n: o for n, o in genotype.choices.items() if o not in ("none", "plain")}
    return ", ".join(f"{name}: {option}" for name, option in sorted(chosen.items()))


def _head(width: float, height: float, title: str) -> list[str]:
    """Return the head of a document that draws dark on a light page and light on a dark page."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{_escape(title)}" class="drawing" '
        'font-family="sans-serif" font-size="13" fill="currentColor">',
        "<style>.drawing{color:#1c2733}"
        "@media (prefers-color-scheme:dark){.drawing{color:#dfe6ee}}</style>",
        f"<title>{_escape(title)}</title>",
    ]


def _markers(used: Sequence[str]) -> list[str]:
    heads = [
        f'<marker id="head-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{STYLES[name][0]}"/></marker>'
        for name in used
    ]
    return ["<defs>", *heads, "</defs>"]


def _chain(start: tuple[float, float], end: tuple[float, float]) -> str:
    return (
        f'<path d="M{start[0] + NODE_WIDTH / 2} {start[1]}H{end[0] - NODE_WIDTH / 2}" '
        'stroke="currentColor" stroke-opacity=".35" stroke-width="1.5"/>'
    )


def _curve(flow: Flow, flows: Sequence[Flow], centers: dict[str, tuple[float, float]]) -> str:
    """Draw a flow between the borders of its nodes; flows into one node end side by side."""
    (x0, y0), (x1, y1) = centers[flow.source], centers[flow.target]
    arriving = [other for other in flows if other.target == flow.target]
    shift = 16 * (arriving.index(flow) - (len(arriving) - 1) / 2)
    down = 1 if y1 > y0 else -1
    reach = 0.4 * (abs(y1 - y0) - NODE_HEIGHT)
    end = (x1 + shift, y1 - down * (NODE_HEIGHT / 2 + 1))
    if x0 == x1:
        # Bend around the nodes between the two, farther if there are more of them.
        start = (x0 + 26, y0 + down * NODE_HEIGHT / 2)
        bends = (0.3 * abs(y1 - y0), 0.3 * abs(y1 - y0))
    else:
        start = (x0 + NODE_WIDTH / 2, y0)
        bends = (22, 0)
    color, dashes = STYLES[flow.operation]
    return (
        f'<path d="M{start[0]:g} {start[1]:g}C{start[0] + bends[0]:g} {start[1] + down * reach:g} '
        f'{end[0] + bends[1]:g} {end[1] - down * reach:g} {end[0]:g} {end[1]:g}" fill="none" '
        f'stroke="{color}" stroke-width="{3 if flow.port == "gate" else 2}" '
        f'stroke-dasharray="{dashes}" marker-end="url(#head-{flow.operation})">'
        f"<title>{_escape(str(flow))}</title></path>"
    )


def _box(name: str, x: float, y: float) -> str:
    return (
        f'<rect x="{x - NODE_WIDTH / 2:g}" y="{y - NODE_HEIGHT / 2:g}" width="{NODE_WIDTH}" '
        f'height="{NODE_HEIGHT}" rx="6" fill="#e9eef2" stroke="#556"/>'
        f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle" fill="#223">{_escape(name)}</text>'
    )


def _legend(used: Sequence[str], top: float) -> list[str]:
    parts = []
    for i, name in enumerate(used):
        x, y = LEFT + 230 * (i % 2), top + 22 * (i // 2)
        color, dashes = STYLES[name]
        parts.append(
            f'<path d="M{x} {y}h34" stroke="{color}" stroke-width="2" stroke-dasharray="{dashes}"/>'
            f'<text x="{x + 44}" y="{y + 5}">{_escape(name)}</text>'
        )
    return parts or [f'<text x="{LEFT}" y="{top + 5}">no flows</text>']


def to_dot(genotype: Genotype, topology: Topology) -> str:
    """Write a genotype in DOT: solid edges are flows, dotted edges join the nodes of a branch.

    Args:
        genotype: The genotype.
        topology: Branches and nodes of the network.
    """
    name = _printable(genotype.name).replace("\\", "\\\\").replace('"', '\\"')
    lines = [f'digraph "{name}" {{', "  rankdir=LR; node [shape=box];"]
    for node in topology.nodes:
        lines.append(f'  "{node.name}";')
        if node.index > 1:
            lines.append(
                f'  "{node.branch.name}.{node.index - 1}" -> "{node.name}" [style=dotted];'
            )
    for flow in genotype.flows:
        label = flow.operation if flow.port == "input" else f"{flow.port}: {flow.operation}"
        lines.append(f'  "{flow.source}" -> "{flow.target}" [label="{label}"];')
    return "\n".join([*lines, "}"]) + "\n"
