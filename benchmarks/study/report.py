#!/usr/bin/env python
"""Write the study's page, ``report.html``, and complete docs/study.md, from kept results.

    python -m benchmarks.study.report --write docs/study.md docs/study_runs.md

With --output and --data as they were given to run.py, the page has predictions of the trained
networks, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog

from benchmarks.intervals import Interval, Result, minus
from benchmarks.pages import complete, parser_of, table
from benchmarks.study.analysis import OF_THE_FIRST, Outcome, difference, estimate, outcomes
from benchmarks.study.claims import HEAD as HEAD_OF_CLAIMS
from benchmarks.study.claims import all_claims, cells, claims_table
from benchmarks.study.images import on_images, pq
from benchmarks.study.keep import ROOT
from benchmarks.study.run import HUMAN, METHODS, PARALLEL, Study, final_seeds, search_seeds
from benchmarks.study.searches import CAPTION as CAPTION_OF_SEARCHES
from benchmarks.study.searches import HEAD as HEAD_OF_SEARCHES
from benchmarks.study.searches import common_flows, what_searches_left
from benchmarks.trials import ROOT as REPOSITORY
from darts.history import history_svg
from darts.relaxation import Architecture
from spatialflow.config import get_cfg
from spatialflow.data.mapper import PanopticMapper
from spatialflow.data.register import ensure_metadata
from spatialflow.engine import prepare_config
from spatialflow.engine.predictor import Predictor
from spatialflow.report import Page, charts, details, drawing, paragraph, picture
from spatialflow.report import table as sortable
from spatialflow.report.samples import Panoptic, Samples
from spatialflow.search.report import compared
from spatialflow.search.space import relaxing, search_space, topology_of

ON_TEST_IMAGES = ("final", "final_random")
STAGES = ("harness", "searched", "random", "minus", "shortlist", *ON_TEST_IMAGES)
FIGURES = REPOSITORY / "docs" / "images"
DRAWN = 4
HEAD_OF_ROUNDS = ("round", "group", "PQ over the first round's")
HEAD_OF_EXPLORED = ("genotype", "PQ (seed)", "PQ over parallel", "things over parallel")
HEAD_OF_GROUPS = ("group", "runs", "images", "PQ", "PQ over human", "cost", "GFLOPs")
HEAD = ("contestant", "stage", "runs", "images", "PQ", "things", "stuff", "cost", "GFLOPs")


def contestants(outcome: Outcome) -> list[list[str]]:
    """Return a row for each contestant of each stage: PQ with intervals, and its flows' cost.

    Of the final alone, PQ on test images: whatever comes before is judged by selection images.
    Stages that a later round does not run again are left to the first.
    """
    rows = []
    for stage in STAGES:
        if outcome.round > 1 and stage in OF_THE_FIRST:
            continue
        runs = outcome.runs(stage)
        for name in sorted({r["contestant"] for r in runs}):
            mine = [r for r in runs if r["contestant"] == name]
            part = "test" if stage in ON_TEST_IMAGES else "selection"
            sampled = estimate(mine, part=part)
            groups = [sampled.cell(group) for group in range(3)]
            costs = span(outcome.cost, [name]), span(outcome.gflops, [name])
            rows.append([name, stage, str(len(mine)), part, *groups, *costs])
    return rows


def judged(outcome: Outcome) -> dict[str, list[Result]]:
    """Return the runs of what is compared on selection images, without the human flows' own."""
    ablation = {"human less one flow": outcome.runs("minus")} if outcome.round == 1 else {}
    return {
        "parallel": outcome.runs("harness", PARALLEL),
        **ablation,
        **{method: outcome.runs("searched", method) for method in METHODS},
        "random": outcome.runs("random"),
    }


def against_human(outcome: Outcome) -> dict[str, Interval]:
    """Return the differences of groups to human flows of the same seeds, on selection images."""
    human = outcome.runs("harness", HUMAN)
    return {
        name: difference(runs, human, part="selection").interval(0)
        for name, runs in judged(outcome).items()
        if runs and human
    }


def summary(outcome: Outcome, differences: Mapping[str, Interval]) -> list[list[str]]:
    """Return a row for each group on selection images, and for the final's on test images.

    Args:
        outcome: Of a data set and round.
        differences: Of groups, as :func:`against_human` gives them.
    """
    human = outcome.runs("harness", HUMAN)
    rows = [
        group_row(outcome, name, "selection", runs, differences.get(name))
        for name, runs in {"human": human, **judged(outcome)}.items()
        if runs
    ]
    if outcome.finalist:
        opponent = outcome.runs("final", HUMAN)
        finalist = outcome.runs("final", outcome.finalist["finalist"])
        if opponent and finalist:
            over = difference(finalist, opponent, part="test").interval(0)
            rows.append(group_row(outcome, "human", "test", opponent))
            rows.append(group_row(outcome, "the finalist", "test", finalist, over))
        for name, runs in (
            ("parallel", outcome.runs("final", PARALLEL)),
            ("random", outcome.runs("final_random")),
        ):
            if opponent and runs:
                over = difference(runs, opponent, part="test").interval(0)
                rows.append(group_row(outcome, name, "test", runs, over))
    return rows


def group_row(
    outcome: Outcome, name: str, part: str, runs: list[Result], over: Interval | None = None
) -> list[str]:
    """Return a row under :data:`HEAD_OF_GROUPS`."""
    names = sorted({r["contestant"] for r in runs})
    mean = estimate(runs, part=part).cell(0)
    costs = span(outcome.cost, names), span(outcome.gflops, names)
    return [name, str(len(runs)), part, mean, over.text(sign=True) if over else "", *costs]


def span(measure: Callable[[str], float], names: Sequence[str]) -> str:
    """Write the smallest and the largest of some contestants' values."""
    values = sorted(map(measure, names))
    ends = dict.fromkeys(f"{value:.2f}" for value in (values[0], values[-1]))
    return " to ".join(ends)


def flows_worth(outcome: Outcome) -> dict[str, Interval]:
    """Return what PQ changes when a flow is left out, on selection images.

    One run each, of seed 0: the intervals are over images and know nothing of other seeds.
    """
    human = outcome.runs("harness", HUMAN)
    found = {}
    for run in outcome.runs("minus"):
        if human:
            name = run["contestant"].removeprefix("without-").replace("-to-", " → ")
            found[name] = difference([run], human, part="selection").interval(0)
    return found


def explored(outcome: Outcome) -> list[list[str]]:
    """Return what was tried between the rounds: PQ on selection images, and that over parallel."""
    runs: dict[str, list[Result]] = {}
    for run in outcome.runs("explored"):
        runs.setdefault(run["contestant"], []).append(on_images(run, "selection"))
    harness = [on_images(run, "selection") for run in outcome.runs("harness", PARALLEL)]
    rows = []
    for name, mine in {"parallel, harness": harness, **runs}.items():
        cells = ["", ""]
        if mine is not harness and name != PARALLEL:
            over, _ = minus(mine, runs[PARALLEL])
            cells = [over.cell(group, sign=True) for group in (0, 1)]
        seeds = ", ".join(f"{pq(run):.1f} ({run['seed']})" for run in mine)
        rows.append([name, seeds, *cells])
    return rows


def between_rounds(found: Sequence[Outcome]) -> list[list[str]]:
    """Return what later rounds' groups have over those of the first, on selection images."""
    rows = []
    for later in (outcome for outcome in found if outcome.round > 1):
        before = judged(Outcome(later.first))
        for name, runs in judged(later).items():
            if runs and before[name] and runs != before[name]:
                over = difference(runs, before[name], part="selection")
                rows.append([later.name, name, over.cell(0, sign=True)])
    return rows


@dataclass
class Findings:
    """What is said of a data set, measured once for page and tables."""

    outcome: Outcome
    summary: list[list[str]]
    contestants: list[list[str]]
    searches: list[list[str]]
    figures: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, outcome: Outcome) -> Findings:
        """Measure all; a chart is kept by its file's name, with what it shows."""
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
        return cls(outcome, groups, contestants(outcome), what_searches_left(outcome), charted)

    @property
    def tables(self) -> dict[str, str]:
        """For pages, by their marks."""
        name = self.outcome.name
        return {
            f"study {name}": table(HEAD_OF_GROUPS, self.summary),
            f"study runs {name}": table(HEAD, self.contestants),
            f"study searches {name}": table(HEAD_OF_SEARCHES, self.searches),
        }

    def fragments(self) -> Iterator[str]:
        """Yield what the page says."""
        if not self.contestants:
            yield paragraph("Not run yet.")
            return
        outcome = self.outcome
        if outcome.finalist:
            name = outcome.finalist["finalist"]
            topology = topology_of(get_cfg(outcome.data.search))
            yield paragraph(f"The finalist, {name}, and the human flows:")
            yield compared(outcome.genotype(name), topology)
        yield sortable(HEAD_OF_GROUPS, self.summary, caption="Groups: PQ with 95 % intervals")
        caption = "PQ in percent, 95 % intervals; cost over human flows'"
        yield sortable(HEAD, self.contestants, caption=caption)
        for figure, alt in self.figures.values():
            yield drawing(figure, alt=alt, caption=alt, width="fits")
        if self.searches:
            yield sortable(HEAD_OF_SEARCHES, self.searches, caption=CAPTION_OF_SEARCHES)
        yield from histories(outcome)


def histories(outcome: Outcome) -> Iterator[str]:
    """Yield how probabilities went in the first search of two methods, of those that were run."""
    for method in ("default", "darts_original"):
        search = f"{method}_{search_seeds(outcome.round)[0]}"
        lines = outcome.history(search)
        if lines:
            cfg = outcome.data.search_config(method, outcome.round)
            architecture = Architecture(search_space(cfg), relaxing(cfg))
            title = f"{search}: probabilities over the search"
            yield drawing(history_svg(architecture, lines, title=title), alt=title)


def predictions(study: Study, outcome: Outcome) -> Iterator[str]:
    """Yield pictures of the first held-out images after the final, where its weights are there."""
    if outcome.finalist is None or not outcome.runs("final"):
        return
    seed = final_seeds(study.round)[0]
    results: dict[str, list[Panoptic]] = {}
    for title, name in (("human", HUMAN), ("searched", outcome.finalist["finalist"])):
        folder = study.folder / "final" / f"{name}-seed{seed}"
        weights = folder / "model_final.pth"
        if not weights.is_file():
            return
        cfg = get_cfg(str(REPOSITORY / study.data.training), list(map(str, study.keys)))
        cfg.MODEL.SPATIALFLOW.GENOTYPE = str(folder / "genotype.json")
        cfg.MODEL.WEIGHTS = str(weights)
        prepare_config(cfg)
        data = cfg.DATASETS.TEST[0]
        samples = Samples(DatasetCatalog.get(data)[:DRAWN], ensure_metadata(data))
        mapper = PanopticMapper(cfg, is_train=False)
        results[title] = samples.results_of(Predictor(cfg).model, mapper)
    alt = "image, ground truth, human and searched flows"
    yield picture(samples.draw(results, DRAWN), alt=alt, caption=f"{alt}, seed {seed}")


def main() -> None:
    """Write the page, and complete others."""
    args = parse_arguments()
    page = Page("Searched flows against human ones", "A study on what a small computer can train.")
    studied = outcomes(args.kept)
    found = all_claims(studied)
    page.section("Claims", sortable(HEAD_OF_CLAIMS, cells(found), caption="Hypotheses"))
    tables = {
        "study claims": claims_table(found),
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
    parser = parser_of(__doc__, threads=False)
    parser.add_argument("--kept", type=Path, default=ROOT, help="folder of kept results")
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--data", type=Path, help="the nuclei, for pictures of predictions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
