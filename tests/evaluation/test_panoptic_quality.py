"""Counts of matches, compared bit for bit with panopticapi on random and on real maps."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from spatialflow.data.panoptic_png import MAX_SEGMENT_ID, write_panoptic_png
from spatialflow.data.validation.file_rules import read_panoptic_png
from spatialflow.evaluation import count_matches, summarize

with contextlib.redirect_stdout(io.StringIO()):
    from panopticapi.evaluation import PQStat, pq_compute_single_core

CASES = 1000
THINGS, STUFF, UNUSED = (3, 90), (7, 200), 255
CATEGORIES = {
    i: {"id": i, "name": str(i), "isthing": int(i in THINGS)} for i in (*THINGS, *STUFF, UNUSED)
}
FIELDS = ("id", "category_id", "iscrowd", "area")


def counts_of(stat, categories):
    """The counts of panopticapi in our form."""
    return {
        str(i): {
            "isthing": categories[i]["isthing"],
            "iou": c.iou,
            "tp": c.tp,
            "fp": c.fp,
            "fn": c.fn,
        }
        for i, c in sorted(stat.pq_per_cat.items())
        if c.tp + c.fp + c.fn
    }


def by_panopticapi(truth, prediction, folders, categories):
    """What panopticapi counts on one image, of annotations in COCO's format."""
    copies = tuple(
        {**a, "segments_info": [dict(s) for s in a["segments_info"]]} for a in (truth, prediction)
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, [copies], *map(str, folders), categories)


def rectangles(rng, ids, size=24):
    """A (24, 24) map with a rectangle of each id, the later over the earlier, the rest void."""
    painted = np.zeros((size, size), np.int64)
    for i in ids:
        top, left = rng.integers(-4, size - 4, 2)
        height, width = rng.integers(4, 18, 2)
        painted[max(top, 0) : top + height, max(left, 0) : left + width] = i
    return painted


def random_case(rng):
    """A true and a predicted map with their segments; the prediction is mostly a worse truth."""
    ids = rng.choice(MAX_SEGMENT_ID, rng.integers(0, 9), replace=False) + 1
    ids[: rng.integers(0, 2)] = rng.choice([1, MAX_SEGMENT_ID])
    true = rectangles(rng, np.unique(ids))
    classes = {int(i): int(rng.choice([*THINGS, *STUFF])) for i in np.unique(true[true > 0])}
    segments = [
        {"id": i, "category_id": c, "iscrowd": int(rng.random() < 0.25), "area": int(n)}
        for (i, c), n in zip(
            classes.items(), np.unique(true[true > 0], return_counts=True)[1], strict=True
        )
    ]
    rng.shuffle(segments)
    shift = rng.integers(-2, 3, 2)
    found = np.zeros_like(true)
    named = {}
    for i, c in classes.items():
        new = int(rng.integers(1, MAX_SEGMENT_ID + 1)) if rng.random() < 0.8 else i
        if rng.random() < 0.85:
            found[np.roll(true == i, shift, (0, 1))] = new
            named[new] = c if rng.random() < 0.8 else int(rng.choice([*THINGS, *STUFF]))
    more = rectangles(rng, rng.choice(MAX_SEGMENT_ID, 3, replace=False) + 1)
    found = np.where(
        (more > 0) & (rng.random() < 0.7) & ((found == 0) | (rng.random() < 0.1)), more, found
    )
    if rng.random() < 0.03:
        found[:] = 0
    present = [int(i) for i in np.unique(found) if i]
    listed = [
        {"id": i, "category_id": named.get(i, int(rng.choice([*THINGS, *STUFF])))} for i in present
    ]
    rng.shuffle(listed)
    return (true, segments), (found, listed)


def without_crowds(segments):
    """The same segments, the crowds of a class that is never predicted."""
    return [{**s, "category_id": UNUSED} if s["iscrowd"] else s for s in segments]


def test_random_maps_are_counted_as_by_panopticapi(tmp_path):
    rng = np.random.default_rng(0)
    folders = (tmp_path / "truth", tmp_path / "found")
    for folder in folders:
        folder.mkdir()
    tp, by_void, by_crowd, several_crowds, void_only, nothing_found = np.zeros(6, int)
    for case in range(CASES):
        truth, prediction = random_case(rng)
        for folder, (ids, _) in zip(folders, (truth, prediction), strict=True):
            write_panoptic_png(folder / "0.png", ids)
        annotations = [
            {"image_id": case, "file_name": "0.png", "segments_info": s}
            for s in (truth[1], prediction[1])
        ]
        before = json.dumps([truth[1], prediction[1]])
        mine = count_matches(truth, prediction, CATEGORIES, case)
        assert json.dumps([truth[1], prediction[1]]) == before
        theirs = by_panopticapi(*annotations, folders, CATEGORIES)
        assert mine == counts_of(theirs, CATEGORIES), case
        # What happened: without crowds of a class its predictions there are false.
        uncrowded = (truth[0], without_crowds(truth[1]))
        strict = count_matches(uncrowded, prediction, CATEGORIES, case)
        matched, false, strictly = (
            sum(c[key] for c in counts.values())
            for counts, key in ((mine, "tp"), (mine, "fp"), (strict, "fp"))
        )
        tp += matched
        by_crowd += strictly - false
        by_void += len(prediction[1]) - matched - strictly
        crowds = [s["category_id"] for s in truth[1] if s["iscrowd"]]
        several_crowds += len(crowds) > len(set(crowds))
        void_only += not truth[1]
        nothing_found += not prediction[1]
    assert tp > 1000
    assert by_void > 200
    assert by_crowd > 200
    assert several_crowds > 50
    assert void_only > 20
    assert nothing_found > 20


def perturbed(ids, segments, rng):
    """A map moved by a few pixels, some of its segments left out, others merged."""
    moved = np.roll(ids, tuple(rng.integers(-3, 4, 2)), (0, 1))
    found, listed = np.zeros_like(moved), {}
    for segment in segments:
        fate = rng.random()
        if fate < 0.1:
            continue
        same = [i for i, c in listed.items() if c == segment["category_id"]]
        i = same[-1] if fate < 0.2 and same else segment["id"]
        found[moved == segment["id"]] = i
        listed[i] = segment["category_id"] if fate < 0.95 else segments[0]["category_id"]
    return found, [{"id": i, "category_id": c} for i, c in listed.items()]


REAL = {
    "coco_panoptic_train100": ("panoptic.json", 100),
    "coco_panoptic_sample2/sample_data": ("panoptic_examples.json", 2),
    "facades_train278": ("panoptic.json", 278),
    "nuclei_train433": ("panoptic.json", 433),
}


@pytest.mark.parametrize("folder", REAL)
def test_real_maps_are_counted_as_by_panopticapi(real_data, tmp_path, folder):
    file_name, images = REAL[folder]
    content = json.loads((real_data / folder / file_name).read_text())
    assert len(content["annotations"]) == images
    pngs = real_data / folder / file_name.removesuffix(".json")
    categories = {c["id"]: c for c in content["categories"]}
    rng = np.random.default_rng(0)
    records, total = [], PQStat()
    for truth in content["annotations"]:
        ids = read_panoptic_png(pngs / truth["file_name"])
        found, listed = perturbed(ids, truth["segments_info"], rng)
        # panopticapi opens any picture; a BMP is written fast.
        colours = np.stack([found & 255, (found >> 8) & 255, found >> 16], -1).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "0.bmp")
        annotation = {"image_id": 0, "file_name": "0.bmp", "segments_info": listed}
        mine = count_matches((ids, truth["segments_info"]), (found, listed), categories, 0)
        stat = by_panopticapi(truth, annotation, (pngs, tmp_path), categories)
        assert mine == counts_of(stat, categories), truth["file_name"]
        records.append({"classes": mine})
        total += stat
    assert sum(c["tp"] for r in records for c in r["classes"].values()) > 2 * images
    _, per_class = total.pq_average(categories, isthing=None)
    for result in summarize(records, categories)["per_class"]:
        theirs = per_class[result["id"]]
        if result["PQ"] is None:
            assert theirs == {"pq": 0, "sq": 0, "rq": 0}
        else:
            assert [result[k] for k in ("PQ", "SQ", "RQ")] == [100 * v for v in theirs.values()]


def test_predictions_that_do_not_fit_are_named():
    ids = np.array([[1, 1, 2, 0]])
    truth = (ids, [{"id": 1, "category_id": 3, "iscrowd": 0, "area": 2}])
    one, two, five = ({"id": i, "category_id": 3} for i in (1, 2, 5))
    for segments, message in (
        ([one], r"'a.jpg' has 1 pixels of ids that its segments do not list, the first is 2; "),
        ([one, two, five], r"'a.jpg' lists segment 5, which has no pixel"),
        ([one, {**two, "category_id": 4}], r"'a.jpg' has segment 2 of category 4, .* of \[3, 7, "),
    ):
        with pytest.raises(ValueError, match=message):
            count_matches(truth, (ids, segments), CATEGORIES, "a.jpg")
    assert count_matches(truth, (ids, [one, two]), CATEGORIES, 1)["3"]["tp"] == 1
