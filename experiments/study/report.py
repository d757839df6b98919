#!/usr/bin/env python
"""Write the study's page ``report.html`` and complete the tables of docs/study.md and RUNS.md.

    python -m experiments.study.report --write docs/study.md experiments/study/RUNS.md

All comes from kept results. With --output and --data as they were given to run.py, the page shows
predictions of the trained networks, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import spatialflow  # noqa: F401  # isort: skip  # before PyTorch, for its threads
from detectron2.data import DatasetCatalog

from darts.relaxation import Architecture
from experiments.study.analysis import Outcome, outcomes
from experiments.study.claims import HEAD as HEAD_OF_CLAIMS
from experiments.study.claims import all_claims, cells, claims_table
from experiments.study.firmness import HEAD as HEAD_OF_FIRMNESS
from experiments.study.firmness import firmness
from experiments.study.run import Study
from experiments.study.searches import CAPTION as CAPTION_OF_SEARCHES
from experiments.study.searches import HEAD as HEAD_OF_SEARCHES
from experiments.study.searches import common_flows, search_rows
from experiments.study.settings import HUMAN, REPOSITORY, RESULTS, final_seeds, search_seeds
from experiments.study.tables import (
    HEAD,
    HEAD_OF_EXPLORED,
    HEAD_OF_FINALS,
    HEAD_OF_GROUPS,
    HEAD_OF_ROUNDS,
    against_human,
    between_rounds,
    contestants,
    explored,
    finalists_over,
    finals,
    flows_worth,
    summary,
)
from spatialflow.analysis.tables import complete, program_parser, table
from spatialflow.config import get_cfg
from spatialflow.data.mapper import PanopticMapper
from spatialflow.data.registration import ensure_metadata
from spatialflow.engine import prepare_config
from spatialflow.engine.predictor import Predictor
from spatialflow.evaluation.samples import Panoptic, Samples
from spatialflow.search.history import history_svg
from spatialflow.search.report import compared
from spatialflow.search.space import relaxation_from_config, search_space, topology_from_config
from spatialflow.utils import charts
from spatialflow.utils.html import Page, details, drawing, paragraph, picture
from spatialflow.utils.html import table as sortable

FIGURES = REPOSITORY / "docs" / "images"
DRAWN = 4


@dataclass
class Findings:
    """Tables and charts of a data set and round.

    Attributes:
        outcome: Kept results.
        summary: Rows of groups.
        contestants: Rows of contestants.
        searches: Rows of searches.
        figures: SVG and caption of each chart, by the name of its file.
    """

    outcome: Outcome
    summary: list[list[str]]
    contestants: list[list[str]]
    searches: list[list[str]]
    figures: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, outcome: Outcome) -> Findings:
        """Measure everything and draw the charts."""
        charted = {}
        differences = against_human(outcome)
        for name, values, what in (
            ("groups", differences, "PQ of groups less that of the human flows"),
            ("flows", flows_worth(outcome), "PQ without one flow less PQ of all (one run each)"),
        ):
            if values and (outcome.round == 1 or name == "groups"):
                chart = charts.intervals(values, x="difference in PQ")
                text = f"{what}, {outcome.name}, selection"
                charted[f"study_{outcome.name}_{name}"] = (chart, text)
        groups = summary(outcome, differences)
        return cls(outcome, groups, contestants(outcome), search_rows(outcome), charted)

    @property
    def tables(self) -> dict[str, str]:
        """Markdown tables, by the names in their marks."""
        name = self.outcome.name
        return {
            f"study {name}": table(HEAD_OF_GROUPS, self.summary),
            f"study runs {name}": table(HEAD, self.contestants),
            f"study searches {name}": table(HEAD_OF_SEARCHES, self.searches),
        }

    def fragments(self) -> Iterator[str]:
        """Yield the HTML of the page."""
        if not self.contestants:
            yield paragraph("Not run yet.")
            return
        outcome = self.outcome
        if outcome.chosen:
            topology = topology_from_config(get_cfg(outcome.data.search))
            yield paragraph(f"The finalist, {outcome.chosen}, and the human flows:")
            yield compared(outcome.genotype(outcome.chosen), topology)
        yield sortable(HEAD_OF_GROUPS, self.summary, caption="Groups on selection images")
        caption = "PQ in percent, 95 % intervals; cost over human flows'"
        yield sortable(HEAD, self.contestants, caption=caption)
        for figure, alt in self.figures.values():
            yield drawing(figure, alt=alt, caption=alt, width="fits")
        if self.searches:
            yield sortable(HEAD_OF_SEARCHES, self.searches, caption=CAPTION_OF_SEARCHES)
        yield from histories(outcome)


def histories(outcome: Outcome) -> Iterator[str]:
    """Yield charts of the probabilities in the first search of our default and of DARTS."""
    for method in ("default", "darts_original"):
        search = f"{method}_{search_seeds(outcome.round)[0]}"
        lines = outcome.history(search)
        if lines:
            cfg = outcome.data.search_config(method, outcome.round)
            architecture = Architecture(search_space(cfg), relaxation_from_config(cfg))
            title = f"{search}: probabilities over the search"
            yield drawing(history_svg(architecture, lines, title=title), alt=title)


def final_fragments(
    rows: list[list[str]], over: tuple[list[str], list[list[str]]], chart: str
) -> Iterator[str]:
    """Yield the HTML of the finals."""
    if not rows:
        yield paragraph("Not run yet.")
        return
    yield sortable(HEAD_OF_FINALS, rows, caption="Test images: PQ with 95 % intervals")
    yield sortable(*over, caption="PQ of finalists less that of others, seeds of both")
    text = "PQ less that of the human flows of the same seeds, test images"
    yield drawing(chart, alt=text, caption=text, width="fits")


def predictions(study: Study, outcome: Outcome) -> Iterator[str]:
    """Yield a picture of predictions on held-out images, if the weights of the final exist."""
    if outcome.chosen is None or not outcome.runs("final"):
        return
    seed = final_seeds(study.round)[0]
    results: dict[str, list[Panoptic]] = {}
    for title, name in (("human", HUMAN), ("searched", outcome.chosen)):
        folder = study.folder / "final" / f"{name}-seed{seed}"
        weights = folder / "model_final.pth"
        if not weights.is_file():
            return
        cfg = get_cfg(str(REPOSITORY / study.data.training), list(map(str, study.keys)))
        cfg.MODEL.SPATIALFLOW.GENOTYPE = str(folder / "genotype.json")
        cfg.MODEL.WEIGHTS = str(weights)
        prepare_config(cfg)
        data = cfg.DATASETS.TEST[0]
        samples = Samples(
            DatasetCatalog.get(data)[:DRAWN],
            ensure_metadata(data),
            white_level=cfg.INPUT.WHITE_LEVEL,
        )
        mapper = PanopticMapper(cfg, is_train=False)
        results[title] = samples.results_of(Predictor(cfg).model, mapper)
    alt = "image, ground truth, human and searched flows"
    yield picture(samples.draw(results, DRAWN), alt=alt, caption=f"{alt}, seed {seed}")


def main() -> None:
    """Write the page, and complete other pages."""
    args = parse_arguments()
    page = Page("Searched flows against human ones", "A study on what a small computer can train.")
    studied = outcomes(args.kept)
    found = all_claims(studied)
    decided, over_human = finals(studied)
    chart = charts.intervals(over_human, x="difference in PQ") if decided else ""
    over = finalists_over(studied)
    page.section("Finals", *final_fragments(decided, over, chart))
    if args.write and decided:
        (FIGURES / "study_finals.svg").write_text(chart)
    page.section("Claims", sortable(HEAD_OF_CLAIMS, cells(found), caption="Hypotheses"))
    firm = firmness(studied)
    caption = "What the differences hang on"
    page.section("Firmness", sortable(HEAD_OF_FIRMNESS, firm, caption=caption))
    tables = {
        "study finalists": table(*over),
        "study firmness": table(HEAD_OF_FIRMNESS, firm),
        "study claims": claims_table(found),
        "study finals": table(HEAD_OF_FINALS, decided),
        "study explored": table(HEAD_OF_EXPLORED, explored(Outcome(args.kept / "nuclei"))),
    }
    rounds = between_rounds(studied)
    if rounds:
        tables["study rounds"] = table(HEAD_OF_ROUNDS, rounds)
        caption = "Later rounds beside the first"
        page.section("Rounds", sortable(HEAD_OF_ROUNDS, rounds, caption=caption))
    head, flows = common_flows(studied)
    tables["study flows"] = table(head, flows)
    caption = "Flows that all default searches of a round have, and how many of each round's"
    page.section("Flows", sortable(head, flows, caption=caption))
    for outcome in studied:
        findings = Findings.of(outcome)
        fragments = list(findings.fragments())
        if args.data is not None or outcome.base != "nuclei":
            options = {"data": args.data, "output": args.output, "kept": args.kept, "threads": 1}
            run = argparse.Namespace(name=outcome.base, round=outcome.round, **options)
            fragments += predictions(Study(run), outcome)
        page.section(outcome.name, *fragments)
        tables |= findings.tables
        if args.write:
            for file, (chart, _) in findings.figures.items():
                (FIGURES / f"{file}.svg").write_text(chart)
    plan = (Path(__file__).parent / "PLAN.md").read_text()
    configs = "\n\n".join(
        f"# {outcome.name}\n{outcome.data.search_config('default', outcome.round).dump()}"
        for outcome in studied
    )
    page.section("Settings", details("The plan", plan), details("Configs of searches", configs))
    args.output.mkdir(parents=True, exist_ok=True)
    print(page.save(args.output / "report.html"))
    complete(args.write, tables)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = program_parser(__doc__, threads=False)
    parser.add_argument("--kept", type=Path, default=RESULTS, help="folder of kept results")
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--data", type=Path, help="nuclei, for pictures of predictions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
