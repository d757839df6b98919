"""What the study concludes, from results that are made up."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from darts.genotype import Genotype
from experiments.study.analysis import (
    DEFAULT_ABOVE_RANDOM,
    FINALIST_ABOVE_RANDOM,
    FLOPS,
    NO_DEARER,
    Claim,
    Outcome,
    by_seeds,
    claims,
    difference,
    estimate,
    missed,
    outcomes,
)
from experiments.study.claims import all_claims
from experiments.study.claims import main as claims_main
from experiments.study.keep import HISTORY
from experiments.study.report import Findings, histories
from experiments.study.searches import search_rows
from experiments.study.settings import RESULTS
from experiments.study.tables import (
    against_human,
    between_rounds,
    finalists_over,
    finals,
    flows_worth,
)
from experiments.study.winner import winner
from spatialflow.config import load_genotype
from spatialflow.search.space import search_space

IMAGES = 60


def result(name: str, seed: int, quality: float, noise: float = 0.02) -> dict[str, Any]:
    """One thing an image, matched with about a quality of IoU; stuff always whole."""
    rng = np.random.default_rng(seed)
    ious = np.clip(quality + noise * rng.standard_normal(IMAGES), 0.5, 1)
    return {
        "contestant": name,
        "seed": seed,
        "classes": [{"isthing": 1}, {"isthing": 0}],
        "images": [f"{i}.png" for i in range(IMAGES)],
        "counts": [[[float(iou), 1, 0, 0], [1.0, 1, 0, 0]] for iou in ious],
    }


def write(folder: Path, stage: str, name: str, qualities: list[float], first: int = 0) -> None:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    for seed, quality in enumerate(qualities, first):
        path = folder / stage / f"{name}-seed{seed}.json"
        path.write_text(json.dumps(result(name, seed, quality)))


def study(root: Path, name: str, *, finalist: float = 0.9, random: float = 0.7) -> Outcome:
    folder = root / name
    write(folder, "harness", "spatialflow", [0.8] * 5)
    write(folder, "harness", "parallel", [0.75] * 5)
    for method, quality in (("default", 0.85), ("perturbation", 0.86), ("darts_original", 0.7)):
        for seed in range(3):
            write(folder, "searched", f"{method}_{seed}", [quality])
    write(folder, "random", "random_0", [random])
    write(folder, "minus", "without-box.1-to-cls.1", [0.78])
    write(folder, "final", "spatialflow", [0.8] * 8, 100)
    write(folder, "final", "default_0", [finalist] * 8, 100)
    (folder / "finalist.json").write_text(json.dumps({"finalist": "default_0", "searched": {}}))
    human = load_genotype("spatialflow")
    found = {"held_out_loss": {"supernet": 2.0, "derived": 2.5}}
    searched = [path.name.split("-")[0] for path in folder.glob("searched/*.json")]
    for place, names in (
        ("genotypes", searched),
        ("genotypes/random", ["random_0"]),
        ("genotypes/minus", ["without-box.1-to-cls.1"]),
    ):
        (folder / place).mkdir()
        for one in names:
            fewer = Genotype(one, human.flows[1:], human.choices, provenance=found)
            fewer.save(folder / place / f"{one}.json")
    counted = {"spatialflow": 3.0, "parallel": 2.0}
    hashes = {load_genotype(one).hash: gflops for one, gflops in counted.items()}
    (folder / FLOPS).write_text(json.dumps({**hashes, fewer.hash: 2.9}))
    return Outcome(folder)


def test_a_difference_is_measured_with_its_interval() -> None:
    one = [result("a", seed, 0.9) for seed in range(4)]
    other = [result("b", seed, 0.8) for seed in range(4)]
    paired = estimate(one, other, part="test", paired=True)
    apart = estimate(one, other, part="test")
    # The stuff is the other half of PQ. Pairs have the same noise here, the others do not.
    assert paired.interval(0) == pytest.approx((5, 5, 5))
    assert apart.mean[0] == pytest.approx(5)
    assert apart.interval(0).low < 5 < apart.interval(0).high
    assert estimate(one, part="test").mean[1:] == pytest.approx([90, 100], abs=0.5)
    # The same images are drawn on both sides, however many runs there are.
    runs = [{**result("a", 0, 0.75, 0.15), "seed": seed} for seed in range(3)]
    assert np.abs(estimate(runs, runs[:2], part="test").draws).max() < 1e-9


def test_what_cannot_be_compared() -> None:
    one, other = [result("a", 0, 0.9)], [result("b", 1, 0.8)]
    with pytest.raises(ValueError, match="needs the same seeds"):
        estimate(one, other, part="test", paired=True)
    with pytest.raises(ValueError, match="no run"):
        estimate([], part="test")
    other[0]["images"] = other[0]["images"][::-1]
    with pytest.raises(ValueError, match="the same seeds and images"):
        estimate(one, other, part="test")


def test_nothing_is_claimed_before_the_runs(tmp_path: Path) -> None:
    found = claims(Outcome(tmp_path / "nuclei"))
    assert {claim.holds for claim in found} == {None}
    assert {claim.measured for claim in found} == {"not run"}
    assert len(missed(found)) == 3


@pytest.mark.parametrize(
    ("finalist", "random", "met"), [(0.9, 0.7, True), (0.8, 0.7, False), (0.9, 0.95, False)]
)
def test_the_aim(tmp_path: Path, finalist: float, random: float, met: bool) -> None:
    found = claims(study(tmp_path, "nuclei", finalist=finalist, random=random))
    assert (not missed(found)) == met
    holds = {claim.statement: claim.holds for claim in found}
    assert holds["H1 human > parallel"]
    assert holds["H2 human > DARTS as published"]
    assert holds["H3 finalist > human, test images"] == (finalist > 0.8)
    assert holds["H3 by the t distribution over seeds"] == (finalist > 0.8)
    assert holds["H5 perturbation ≥ default"]


def test_both_aims_are_told_apart(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["claims.py", "--kept", str(tmp_path)])
    outcome = study(tmp_path, "nuclei")
    study(tmp_path, "scenes")
    assert claims_main() == 0
    assert capsys.readouterr().out.count("is met.\n") == 2
    for seed, quality in enumerate((0.71, 0.69, 0.69)):
        write(outcome.folder, "searched", f"default_{seed}", [quality])
    assert claims_main() == 1
    text = capsys.readouterr().out
    assert "as it was first put is met.\nThe aim of PLAN.md is not met:\n  nuclei: H4" in text


def test_the_aim_needs_real_data_and_all_data(tmp_path: Path) -> None:
    scenes = claims(study(tmp_path, "scenes"))
    assert missed(scenes) == ["nuclei: a finalist above human by both intervals, no dearer"]
    nuclei = claims(study(tmp_path, "nuclei"))
    assert not missed([*nuclei, *scenes])
    for statement in (FINALIST_ABOVE_RANDOM, DEFAULT_ABOVE_RANDOM):
        below = Claim("scenes_round2", statement, "mean > 0", "-0.2", False)
        assert missed([*nuclei, *scenes, below]) == [f"scenes_round2: {statement}, -0.2"]
    assert missed([*nuclei, Claim("nuclei", NO_DEARER, "", "1.2", False)])


def test_the_last_round_counts(tmp_path: Path) -> None:
    study(tmp_path, "nuclei", finalist=0.8)
    study(tmp_path, "scenes")
    assert missed(all_claims(outcomes(tmp_path)))
    later = study(tmp_path, "nuclei_round2")
    # What is of the first round is taken from there.
    for stage in ("harness", "minus"):
        shutil.rmtree(later.folder / stage)
        shutil.rmtree(later.folder / "genotypes" / stage, ignore_errors=True)
    assert len(later.runs("harness")) == 10
    assert later.cost("without-box.1-to-cls.1") < 1
    assert [o.name for o in outcomes(tmp_path)] == ["nuclei", "nuclei_round2", "scenes"]
    write(later.folder, "final_random", "random_0", [0.7], 100)
    assert not missed(all_claims(outcomes(tmp_path)))
    # What it does run again is its own, also before it has been run.
    shutil.rmtree(later.folder / "random")
    assert not later.runs("random")


def test_runs_are_compared_at_seeds_that_both_sides_have() -> None:
    one = [result("a", 0, 0.9, 0), result("b", 0, 0.8, 0)]
    other = [result("human", 0, 0.8, 0), result("human", 1, 0.6, 0)]
    # Stuff is the same; without noise seed 0 is worth nothing by itself.
    found = difference(one, other, part="selection").interval(0)
    assert found.mean == pytest.approx(2.5)
    assert found.low < 2.5 < found.high
    with pytest.raises(ValueError, match="seed in common"):
        difference(one, other[1:], part="selection")


def test_a_final_is_not_looked_at_before_it_is_whole(tmp_path: Path) -> None:
    outcome = study(tmp_path, "nuclei")
    (outcome.folder / "final" / "default_0-seed107.json").unlink()
    assert {run["contestant"] for run in outcome.runs("final")} == {"spatialflow"}
    measured = {claim.statement: claim.measured for claim in claims(outcome)}
    assert measured["H3 finalist > human, test images"] == "not run"
    assert "H3 by the t distribution over seeds" not in measured


def test_random_genotypes_are_rivals_with_the_seeds_of_the_round(tmp_path: Path) -> None:
    def verdict(outcome: Outcome) -> bool | None:
        return next(c.holds for c in claims(outcome) if c.statement == FINALIST_ABOVE_RANDOM)

    # In the first round with seed 0, and never with others; the default search's has 0.85.
    first = study(tmp_path, "nuclei", random=0.88)
    assert verdict(first) is False
    # In the second with the final's seeds, and before they are run nothing is said.
    second = study(tmp_path, "nuclei_round2", random=0.95)
    assert verdict(second) is None
    write(second.folder, "final_random", "random_0", [0.88], 100)
    assert verdict(second) is True


def test_the_winner_is_the_last_finalist_that_is_above_human(tmp_path: Path) -> None:
    study(tmp_path, "nuclei")
    later = study(tmp_path, "nuclei_round2")
    found = winner(tmp_path)
    assert found.name == "nas_spatialflow"
    assert found.hash == later.genotype("default_0").hash
    assert found.provenance["study"] == "docs/study.md, nuclei_round2, default_0"
    assert found.provenance["search"].startswith("search/nuclei.yaml SEARCH.SPACE.PORTS ['gate']")
    assert found.provenance["PQ over spatialflow"].startswith("+5.00 (")
    study(tmp_path / "none", "nuclei", finalist=0.8)
    with pytest.raises(ValueError, match="no finalist on nuclei"):
        winner(tmp_path / "none")


def test_the_winner_that_is_packaged_is_that_of_the_kept_results() -> None:
    assert winner(RESULTS) == load_genotype("nas_spatialflow")


def test_operations_are_those_of_flows_over_the_parallel_network(tmp_path: Path) -> None:
    outcome = study(tmp_path, "scenes")
    (outcome.folder / FLOPS).unlink()
    parallel, human, fewer = map(outcome.gflops, ("parallel", "spatialflow", "default_0"))
    share = outcome.cost("default_0")
    assert (fewer - parallel) / (human - parallel) == pytest.approx(share, abs=0.02)
    assert len(json.loads((outcome.folder / FLOPS).read_text())) == 3
    (outcome.folder / FLOPS).write_text(json.dumps({load_genotype("parallel").hash: 7.0}))
    assert outcome.gflops("parallel") == 7


def test_t_intervals_are_over_seeds() -> None:
    pairs = [(0.9, 0.8), (0.88, 0.8), (0.92, 0.8)]
    one, other = ([result(n, s, q[i], 0) for s, q in enumerate(pairs)] for i, n in enumerate("ab"))
    found = by_seeds(one, other)
    # PQ differences are 5, 4 and 6: 5 ± 4.303 / √3.
    assert (found.mean, found.low, found.high) == pytest.approx((5, 2.516, 7.484), abs=1e-3)


def test_what_the_page_says(tmp_path: Path) -> None:
    outcome = study(tmp_path, "nuclei")
    differences = against_human(outcome)
    assert differences["parallel"][0] == pytest.approx(-2.5, abs=0.2)
    assert differences["default"][0] == pytest.approx(2.5, abs=0.3)
    assert list(flows_worth(outcome)) == ["box.1 → cls.1"]
    findings = Findings.of(outcome)
    groups = {row[0]: row for row in findings.summary}
    assert groups["default"][1] == "3"
    assert groups["human"][3:] == ["", "1.00", "3.00"]
    rows = findings.contestants
    assert ["default_0", "final", "8"] in [row[:3] for row in rows]
    cost = {row[0]: float(row[-2]) for row in rows}
    assert cost["spatialflow"] == 1
    assert cost["parallel"] == 0
    assert 0.8 < cost["default_0"] < 1
    text = "".join(findings.fragments())
    assert text.count("<figure>") == 4
    assert text.count("2.500") == 9
    assert "without-box.1-to-cls.1" in text


def test_finals_are_shown_when_they_are_whole(tmp_path: Path) -> None:
    outcome = study(tmp_path, "nuclei")
    rows, over_human = finals([outcome])
    assert [row[:3] for row in rows] == [
        ["nuclei", *row] for row in (("human", "8"), ("the finalist", "8"))
    ]
    assert rows[1][4] == "+5.0 (+5.0 to +5.0)"
    assert over_human["nuclei: the finalist"] == pytest.approx((5, 5, 5), abs=0.1)
    write(outcome.folder, "final", "parallel", [0.75] * 8, 100)
    write(outcome.folder, "final_random", "random_0", [0.7], 100)
    rows, over_human = finals([outcome])
    assert {row[1]: row[2] for row in rows[2:]} == {"parallel": "8", "random": "1"}
    assert over_human["nuclei: random"].mean == pytest.approx(-5, abs=0.1)
    head, over = finalists_over([outcome, study(tmp_path, "scenes")])
    assert head[1:] == ["nuclei", "scenes"]
    means = {row[0]: [float(cell.split()[0]) if cell else None for cell in row[1:]] for row in over}
    assert list(means) == ["human", "parallel", "random"]
    assert means["human"] == pytest.approx([5, 5], abs=0.1)
    assert [row[0] for row in means.values()] == pytest.approx([5, 7.5, 10], abs=0.1)
    assert [row[1] for row in list(means.values())[1:]] == [None, None]
    next(outcome.folder.glob("final/default_0-*.json")).unlink()
    assert finals([outcome]) == ([], {})
    assert finalists_over([outcome])[0] == ["the finalist over"]


def test_a_second_round_shows_searches_of_its_own_space(tmp_path: Path) -> None:
    study(tmp_path, "nuclei")
    later = study(tmp_path, "nuclei_round2")
    genotypes = later.folder / "genotypes"
    found = Genotype.load(genotypes / "default_0.json")
    replace(found, name="default_10").save(genotypes / "default_10.json")
    assert ["default_10", "9"] in [row[:2] for row in search_rows(later)]
    write(later.folder, "random", "random_0", [0.8])
    assert ["nuclei_round2", "random", "+5.0 (+5.0 to +5.0)"] in between_rounds([later])
    assert [row[1] for row in between_rounds([later])] == ["random"]
    assert not list(histories(later))
    space = search_space(later.data.search_config("default", later.round))
    assert {edge.flow.port for edge in space.edges} == {"gate"}
    shares = {str(e): [1 / (1 + len(e.operations))] * (1 + len(e.operations)) for e in space.edges}
    lines = [{"iteration": i, "probabilities": shares} for i in (20, 40)]
    path = later.folder / HISTORY / "default_10.json"
    path.parent.mkdir()
    path.write_text(json.dumps(lines))
    (drawn,) = histories(later)
    assert "default_10" in drawn
