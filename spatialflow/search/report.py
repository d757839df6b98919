"""Write the page of a search: its genotype, its course, and results on held-out images."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from markupsafe import Markup

from darts.derive import RULES, derive
from darts.drawing import to_svg
from darts.genotype import Genotype, GenotypeError
from darts.relaxation import Architecture
from darts.space import SearchSpace, Topology
from spatialflow.data.loader import dataset_dicts
from spatialflow.data.mapper import PanopticMapper, read_segment_map
from spatialflow.data.registration import ensure_metadata
from spatialflow.evaluation.samples import Samples
from spatialflow.search.space import flow_costs, human_genotype
from spatialflow.search.split import split_filter
from spatialflow.search.supernet import SpatialFlowSupernet
from spatialflow.utils import charts
from spatialflow.utils.errors import DataError
from spatialflow.utils.files import read_json_lines
from spatialflow.utils.html import Page, beside, details, drawing, paragraph, picture, table
from spatialflow.utils.randomness import seeded

REPORT_FILE = "report.html"
DRAWN = 3
"""Number of evaluated images that are drawn."""

Lines = Sequence[Mapping[str, Any]]
"""Lines of ``search.jsonl`` by iteration."""


def write_report(
    cfg: CfgNode, supernet: SpatialFlowSupernet, genotype: Genotype, lines: Lines, history: str
) -> Path:
    """Write ``report.html`` into a search's folder.

    Args:
        cfg: Config of the search.
        supernet: Supernet at the end of the search.
        genotype: Genotype that was derived from it.
        lines: Lines of the search's log by iteration; empty if the log is not in the folder.
        history: Picture of the log, as SVG; "" without lines.

    Returns:
        Path of the page.
    """
    architecture = supernet.architecture
    page = Page(f"Search of flows: {genotype.name}", _lead(genotype))
    page.section("Searched and human", compared(genotype, architecture.space.topology))
    page.section("Flows", _flows(cfg, genotype, architecture))
    page.section("How the search went", *_history(cfg, genotype, lines, history))
    page.section("Held-out images", *_samples(cfg, supernet, genotype))
    provenance = json.loads(genotype.to_json())["provenance"]
    page.section(
        "Settings",
        details("Provenance of the genotype", json.dumps(provenance, indent=1)),
        details("The whole config", cfg.dump()),
    )
    return page.save(Path(cfg.OUTPUT_DIR) / REPORT_FILE)


def rehearse_report(cfg: CfgNode, supernet: SpatialFlowSupernet) -> None:
    """Draw a held-out image as :func:`write_report` will, and change nothing.

    Args:
        cfg: Config of the search.
        supernet: Supernet at the start of the search.

    Raises:
        DataError: If a file of the data is missing, broken or contradicts another one.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEARCH.REPORT_IMAGES = min(1, cfg.SEARCH.REPORT_IMAGES)
    architecture = supernet.architecture
    costs, _ = flow_costs(cfg, architecture.space.topology)
    genotype = derive(architecture, RULES["presence"](architecture), name="first", costs=costs)
    with seeded(0):
        list(_samples(cfg, supernet, genotype))


def _lead(genotype: Genotype) -> str:
    found = genotype.provenance
    return (
        f"{len(genotype.flows)} flows at {found['cost']:.2f} of the cost of the human ones, by the "
        f"rule “{found['rule']}” after {found['iterations']} iterations with seed {found['seed']}."
    )


def compared(genotype: Genotype, topology: Topology) -> Markup:
    """Return drawings of a genotype and of the human one, side by side."""
    drawn = []
    for one in (genotype, human_genotype()):
        flows = "; ".join(str(flow) for flow in one.flows) or "none"
        alt = f"{one.name}: {len(one.flows)} flows between the branches: {flows}"
        drawn.append(drawing(to_svg(one, topology), alt=alt, width="large"))
    return beside(*drawn)


def _flows(cfg: CfgNode, genotype: Genotype, architecture: Architecture) -> Markup:
    costs, human = flow_costs(cfg, architecture.space.topology)
    theirs = {(flow.key, flow.operation) for flow in human_genotype().flows}
    edges = {edge.key: edge for edge in architecture.space.edges}
    rows = []
    for flow in genotype.flows:
        edge = edges[flow.key]
        at = edge.operations.index(flow.operation)
        probability = float(architecture.probabilities(edge.key)[at])
        rows.append(
            [
                f"{flow.source} → {flow.target}",
                flow.port,
                flow.operation,
                f"{probability:.3f}",
                f"{100 * costs[flow.key, flow.operation] / human:.1f}",
                "yes" if (flow.key, flow.operation) in theirs else "no",
            ]
        )
    head = ["flow", "port", "operation", "probability", "% of human cost", "human, too"]
    return table(head, rows, caption="Flows of the searched genotype")


def _history(cfg: CfgNode, genotype: Genotype, lines: Lines, history: str) -> Iterator[Markup]:
    loss = genotype.provenance["held_out_loss"]
    yield paragraph(
        f"On held-out images the supernet's loss is {loss['supernet']:.3f}; that of the derived "
        f"network, with the supernet's weights, is {loss['derived']:.3f}. The difference is what "
        "deriving costs."
    )
    if not lines:
        yield paragraph("The log of the search is not in this folder.")
        return
    yield drawing(history, alt="Probability of every candidate of every edge over the search")
    trained = _metrics(Path(cfg.OUTPUT_DIR))
    if trained:
        svg = charts.lines(trained, x="iteration", y="loss")
        yield drawing(svg, alt="Losses of the weights over the search", width="fits")
    for name, label, alt in (
        ("architecture_loss", "loss", "Loss of the architecture on images of its own"),
        ("expected_cost", "of the budget", "Expected cost of the architecture"),
        ("entropy", "nats", "Entropy of the architecture, averaged over edges"),
        ("eigenvalue", "eigenvalue", "Dominant eigenvalue of the architecture's loss"),
    ):
        points = [
            (line["iteration"] + 1, line[name]) for line in lines if line.get(name) is not None
        ]
        if points:
            svg = charts.lines({name.replace("_", " "): points}, x="iteration", y=label)
            yield drawing(svg, alt=alt, caption=f"{alt}.", width="fits")


def _metrics(folder: Path) -> dict[str, list[charts.Point]]:
    """Return the losses in ``metrics.json`` by name; empty if the file is missing."""
    path = folder / "metrics.json"
    if not path.is_file():
        return {}
    found: dict[str, list[charts.Point]] = {}
    for line in read_json_lines(path):
        for name in ("total_loss", *(name for name in sorted(line) if name.startswith("loss_"))):
            if line.get(name) is not None and "iteration" in line:
                found.setdefault(name, []).append((line["iteration"] + 1, line[name]))
    return found


def _held_out(cfg: CfgNode, mapper: PanopticMapper) -> Iterator[dict[str, Any]]:
    """Yield the architecture's images of the first data set, without those that a search skips."""
    for image in filter(
        split_filter(cfg, architecture=True), dataset_dicts(cfg.DATASETS.TRAIN[0], cfg)
    ):
        if cfg.DATALOADER.BAD_DATA == "skip":
            try:
                mapper(dict(image))
                read_segment_map(image)
            except DataError:
                continue
        yield image


def _samples(cfg: CfgNode, supernet: SpatialFlowSupernet, genotype: Genotype) -> Iterator[Markup]:
    """Evaluate the searched and the human flows with the supernet's weights, and draw results."""
    mapper = PanopticMapper(cfg, is_train=False)
    images = list(itertools.islice(_held_out(cfg, mapper), cfg.SEARCH.REPORT_IMAGES))
    if not images:
        return
    metadata = ensure_metadata(cfg.DATASETS.TRAIN[0])
    samples = Samples(images, metadata, white_level=cfg.INPUT.WHITE_LEVEL)
    architecture, training = supernet.architecture, supernet.training
    supernet.eval()
    results = {}
    for title, one in (("human", human_genotype()), ("searched", genotype)):
        if _within(architecture.space, one):
            with architecture.as_genotype(one):
                results[title] = samples.results_of(supernet, mapper)
    supernet.train(training)
    yield paragraph(
        f"The flows in the supernet, with the weights that all of its candidates share, on "
        f"{len(images)} images that only the architecture learned from. Only a training of its own "
        "shows how good a design is."
    )
    rows = []
    for title, result in results.items():
        quality = samples.quality(result)
        rows.append([title, *map(_cell, quality.values())])
    head = ["flows", *quality]
    yield table(head, rows, caption="Panoptic quality in percent, with 95 % intervals over images")
    titles = ", ".join(["image", "ground truth", *results])
    yield picture(
        samples.draw(results, DRAWN),
        alt=f"Rows of pictures of the first held-out images: {titles}",
        caption=f"Left to right: {titles}.",
    )


def _cell(interval: tuple[float, float, float] | None) -> str:
    return "n/a" if interval is None else "{:.1f} ({:.1f} to {:.1f})".format(*interval)


def _within(space: SearchSpace, genotype: Genotype) -> bool:
    """Return whether a genotype is in a space."""
    try:
        space.check(genotype)
    except GenotypeError:
        return False
    return True
