"""What the study's differences hang on, from results that are made up."""

import sys
from pathlib import Path

import pytest

from experiments.study import rates
from experiments.study.analysis import Outcome, difference, estimate
from experiments.study.firmness import firmness
from experiments.study.run import Study
from experiments.study.tests.test_analysis import result, study, write


def means(outcome: Outcome, word: str) -> dict[str, float]:
    """What is measured in the rows with a word."""
    rows = (row[2:] for row in firmness([outcome]) if word in row[2])
    return {what: float(measured.split()[0]) for what, measured in rows}


def test_two_seeds_that_make_half_of_a_difference_are_seen(tmp_path: Path) -> None:
    study(tmp_path, "nuclei")
    later = study(tmp_path, "nuclei_round2")
    # The stuff, which is the other half of PQ, is perfect in all runs.
    write(later.folder, "final", "spatialflow", [0.8] * 6 + [0.5] * 2, 200)
    write(later.folder, "final", "default_0", [0.84] * 8, 200)
    write(later.folder, "final", "parallel", [0.7] * 8, 200)
    write(later.folder, "final", "human_gated", [0.82] * 8, 200)
    write(later.folder, "final_random", "random_0", [0.8], 207)
    for old in later.folder.glob("final/*-seed10*.json"):
        old.unlink()
    rows = {row[2]: row[3] for row in firmness([later])}
    measured = means(later, "over")
    assert measured["finalist over human, median of the pairs"] == pytest.approx(2, abs=0.2)
    assert rows["pairs in which the finalist is above"] == "8 of 8"
    for what, expected in (
        ("finalist over human, without the 2 pairs that favour it most", 2),
        ("finalist over the human runs of the first final", 2),
        ("finalist over human at the seeds of random genotypes", 17),
        ("human in the final over human of seeds 0 to 4", -3.75),
        ("perturbation over human in the final", 6.75),
        ("random over parallel", 5),
        ("human, as gates over parallel", 6),
        ("random over human, as gates", -1),
    ):
        assert measured[what] == pytest.approx(expected, abs=0.5), what


def test_nothing_is_said_of_a_final_that_is_not_whole(tmp_path: Path) -> None:
    outcome = study(tmp_path, "nuclei")
    assert any("median" in row[2] for row in firmness([outcome]))
    next(outcome.folder.glob("final/default_0-*.json")).unlink()
    assert not any(row[1] == "test" for row in firmness([outcome]))


def test_another_rate_is_seen(tmp_path: Path) -> None:
    later = study(tmp_path, "nuclei")
    for name, quality in (("spatialflow", 0.84), ("parallel", 0.75), ("default_0", 0.9)):
        write(later.folder, "rate_0.0005", name, [quality] * 3)
    assert means(later, "rate") == pytest.approx(
        {
            "finalist over human, with a rate of 0.0005": 3,
            "parallel over human, with a rate of 0.0005": -4.5,
            "human over human of the usual rate, with a rate of 0.0005": 2,
            "parallel over parallel of the usual rate, with a rate of 0.0005": 0,
            "finalist over finalist of the usual rate, with a rate of 0.0005": 2.5,
        },
        abs=0.5,
    )


def test_the_space_of_darts_is_told_from_its_search(tmp_path: Path) -> None:
    study(tmp_path, "nuclei")
    later = study(tmp_path, "nuclei_round2")
    assert not means(later, "darts_gates")
    for seed in range(10, 13):
        write(later.folder, "searched", f"darts_gates_{seed}", [0.78])
    assert means(later, "seed 0") == pytest.approx(
        {
            "darts_gates over darts_original, seed 0": 4,
            "darts_gates over default, seed 0": -3.5,
            "darts_gates over random, seed 0": 4,
            "darts_gates over parallel, seed 0": 1.5,
        },
        abs=0.5,
    )


def test_other_rates_are_trained_beside_the_usual_one(tmp_path: Path, monkeypatch) -> None:
    trained = []
    monkeypatch.setattr(Study, "finalist", lambda _: "default_10.json")
    monkeypatch.setattr(
        Study, "train", lambda self, *what: trained.append((self.data.training_keys[-2:], *what))
    )
    words = ["scenes", "--rates", "0.0005", "0.002", "--output", tmp_path, "--kept", tmp_path]
    monkeypatch.setattr(sys, "argv", ["rates.py", *map(str, words)])
    rates.main()
    assert [(keys[1], stage) for keys, stage, *_ in trained] == [
        (0.0005, "rate_0.0005"),
        (0.002, "rate_0.002"),
    ]
    assert {keys[0] for keys, *_ in trained} == {"SOLVER.BASE_LR"}
    assert trained[0][2:] == (["spatialflow", "parallel", "default_10.json"], range(3))


def test_runs_that_are_no_pairs_are_drawn_apart() -> None:
    one, other = ([result(n, s, q) for s in range(4)] for n, q in (("a", 0.9), ("b", 0.8)))
    _, low, high = estimate(one, other, part="test").interval(0)
    assert low + 0.01 < 5 < high - 0.01


def test_several_runs_of_one_seed_are_no_pairs() -> None:
    runs = [{**result("a", number, 0.75, 0.15), "seed": 0} for number in range(4)]
    _, low, high = difference(runs, runs, part="test").interval(0)
    assert low < -0.01 < 0.01 < high
