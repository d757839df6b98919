"""What the study's differences hang on, from results that are made up."""

from pathlib import Path

import pytest

from benchmarks.study.firmness import firmness
from tests.test_study_analysis import study, write


def test_two_seeds_that_make_half_of_a_difference_are_seen(tmp_path: Path) -> None:
    study(tmp_path, "nuclei")
    later = study(tmp_path, "nuclei_round2")
    # The stuff, which is the other half of PQ, is perfect in all runs.
    write(later.folder, "final", "spatialflow", [0.8] * 6 + [0.5] * 2, 200)
    write(later.folder, "final", "default_0", [0.84] * 8, 200)
    write(later.folder, "final_random", "random_0", [0.8], 207)
    for old in later.folder.glob("final/*-seed10*.json"):
        old.unlink()
    rows = {row[2]: row[3] for row in firmness([later])}
    means = {what: float(text.split()[0]) for what, text in rows.items()}
    assert means["finalist over human, median of the pairs"] == pytest.approx(2, abs=0.2)
    assert rows["pairs in which the finalist is above"] == "8 of 8"
    for what, expected in (
        ("finalist over human, without the 2 pairs that favour it most", 2),
        ("finalist over the human runs of the first final", 2),
        ("finalist over human at the seeds of random genotypes", 17),
        ("human in the final over human of seeds 0 to 4", -3.75),
        ("perturbation over human in the final", 6.75),
    ):
        assert means[what] == pytest.approx(expected, abs=0.5), what


def test_nothing_is_said_of_a_final_that_is_not_whole(tmp_path: Path) -> None:
    outcome = study(tmp_path, "nuclei")
    assert any("median" in row[2] for row in firmness([outcome]))
    next(outcome.folder.glob("final/default_0-*.json")).unlink()
    assert not any(row[1] == "test" for row in firmness([outcome]))
