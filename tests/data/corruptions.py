"""Break a panoptic data set on the disk in many ways.

As a program, break one many times, and count how checker, training and evaluation handle it:

    python tests/data/corruptions.py --count 2000 --seed 0
"""

import argparse
import json
import os
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
from corruption_verdicts import VERDICTS, WRONG, Judge
from json_corruptions import JSON_CHANGES
from PIL import Image

CATEGORIES = [
    {"id": 7, "name": "cat", "isthing": 1, "color": [200, 10, 10], "supercategory": "animal"},
    {"id": 3, "name": "dog", "isthing": 1, "color": [10, 200, 10], "supercategory": "animal"},
    {"id": 9, "name": "grass", "isthing": 0, "color": [10, 90, 10], "supercategory": "ground"},
    {"id": 15, "name": "sky", "isthing": 0, "supercategory": "air"},
]
SIZES = [(40, 56), (40, 56), (56, 40), (48, 48)]
IMAGES, PNGS, JSON = "images", "panoptic", "panoptic.json"


def write_clean_set(root):
    """Write four images, two of them JPEG, of Voronoi cells with six segments each."""
    rng = np.random.default_rng(0)
    for folder in (IMAGES, PNGS):
        (root / folder).mkdir(parents=True)
    content = {"info": {"year": 2020}, "images": [], "annotations": [], "categories": CATEGORIES}
    for number, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        seeds = rng.uniform(0, [height, width], (7, 2))
        cells = np.argmin((y[..., None] - seeds[:, 0]) ** 2 + (x[..., None] - seeds[:, 1]) ** 2, -1)
        known = [0, *(int(i) for i in rng.choice(2**24 - 1, 6, replace=False) + 1)]
        ids = np.array(known)[cells]  # one cell is void
        picture = rng.integers(0, 256, (7, 3))[cells] + rng.integers(-20, 20, (height, width, 3))
        name = f"{number}.{'png' if number % 2 else 'jpg'}"
        picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
        picture.save(root / IMAGES / name)
        save_ids(root / PNGS / f"{number}.png", ids)
        segments = []
        for i, segment_id in enumerate(known[1:]):
            rows, columns = np.nonzero(ids == segment_id)
            left, top = int(columns.min()), int(rows.min())
            box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
            category = CATEGORIES[i % 4]["id"]
            segments.append({"id": segment_id, "category_id": category, "iscrowd": int(i == 5)})
            segments[-1] |= {"area": int(rows.size), "bbox": box}
        size = {"height": height, "width": width}
        content["images"].append({"id": number + 10, "file_name": name, "license": 1, **size})
        png = {"image_id": number + 10, "file_name": f"{number}.png", "segments_info": segments}
        content["annotations"].append(png)
    (root / JSON).write_text(json.dumps(content))


def save_ids(path, ids):
    channels = np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path, format="PNG")


def load_ids(path):
    channels = np.asarray(Image.open(path).convert("RGB"), dtype=np.int64)
    return channels @ [1, 256, 65536]


def pick(root, where, random):
    """Return one file of a folder, or the JSON."""
    return root / JSON if where == JSON else random.choice(sorted((root / where).iterdir()))


def truncate(path, random):
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(1, len(data))])


def flip_bits(path, random):
    data = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 1, 5])):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(data))


def overwrite_a_part(path, random):
    data = bytearray(path.read_bytes())
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice([1, 4, 64]))
    data[start:end] = random.randbytes(end - start)
    path.write_bytes(bytes(data))


def fill_with_random_bytes(path, random):
    path.write_bytes(random.randbytes(random.choice([1, 8, 500])))


def empty(path, random):
    path.write_bytes(b"")


def delete(path, random):
    path.unlink()


def put_a_folder_in_its_place(path, random):
    path.unlink()
    path.mkdir()


def put_a_wrong_link_in_its_place(path, random):
    path.unlink()
    path.symlink_to(random.choice([path, path.parent, Path("/nowhere"), Path("/dev/null")]))


def claim_a_billion_pixels(path, random):
    """Write a small PNG whose header says 32000 × 32000."""
    chunks = []
    header = struct.pack(">IIBBBBB", 32000, 32000, 8, 2, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 5000)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        chunks.append(struct.pack(">I", len(data)) + kind + data + checksum)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def resize(path, random):
    with Image.open(path) as picture:
        width, height = picture.size
        size = random.choice([(width + 1, height), (width, height - 1), (1, 1), (height, width)])
        resized = picture.resize(size, Image.Resampling.NEAREST)
    kind = "JPEG" if path.suffix == ".jpg" else "PNG"
    # A square has no other orientation.
    resized = resized if size != (width, height) else resized.crop((0, 0, width - 1, height))
    resized.save(path, format=kind)


def make_16_bit(path, random):
    deep = np.asarray(Image.open(path).convert("L"), dtype=np.uint16) * 257
    Image.fromarray(deep).save(path, format="PNG")


def make_grey(path, random):
    Image.open(path).convert("L").save(path, format="PNG")


def make_palette(path, random):
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path, format="PNG")


def compress_with_loss(path, random):
    Image.open(path).convert("RGB").save(path, format="JPEG", quality=30)


def change_ids(path, random):
    """Give some pixels to another segment, an unknown one, or void."""
    ids = load_ids(path)
    height, width = ids.shape
    top, left = random.randrange(height), random.randrange(width)
    size = random.choice([1, 1, 3])
    known = [int(i) for i in np.unique(ids)]
    old = ids[top, left]
    new = random.choice([i for i in (*known, 5, 2**24 - 1) if i != old])
    ids[top : top + size, left : left + size] = new
    save_ids(path, ids)


def erase_a_segment(path, random):
    ids = load_ids(path)
    ids[ids == random.choice([int(i) for i in np.unique(ids) if i])] = 0
    save_ids(path, ids)


def turn_upside_down(path, random):
    save_ids(path, load_ids(path)[::-1])


def _on_file(change, where):
    def corrupt(root, random):
        path = pick(root, where, random)
        change(path, random)
        return {path}

    return corrupt


def _swap_files(first, second):
    def corrupt(root, random):
        one, other = pick(root, first, random), pick(root, second, random)
        if one != other:
            data = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(data)
        return {one, other}

    return corrupt


def _on_json(change):
    def corrupt(root, random):
        content = json.loads((root / JSON).read_text())
        change(content, random)
        (root / JSON).write_text(json.dumps(content))
        return {root / JSON}

    return corrupt


def _title(change, what=""):
    return f"{what} {change.__name__.replace('_', ' ')}".strip()


_ANY = (truncate, flip_bits, overwrite_a_part, fill_with_random_bytes, empty, delete)
_ANY += (put_a_folder_in_its_place, put_a_wrong_link_in_its_place)
_PICTURE = (resize, make_16_bit, claim_a_billion_pixels)
_PNG = (make_grey, make_palette, compress_with_loss, change_ids, erase_a_segment, turn_upside_down)
KINDS = {
    **{_title(c, "image:"): _on_file(c, IMAGES) for c in _ANY + _PICTURE},
    **{_title(c, "PNG:"): _on_file(c, PNGS) for c in _ANY + _PICTURE + _PNG},
    **{_title(c, "JSON:"): _on_file(c, JSON) for c in _ANY},
    **{_title(c, "JSON:"): _on_json(c) for c in JSON_CHANGES},
    "image: exchange with another": _swap_files(IMAGES, IMAGES),
    "PNG: exchange with another": _swap_files(PNGS, PNGS),
    "PNG: exchange with an image": _swap_files(IMAGES, PNGS),
}
"""Functions (root, random) by name; each breaks something and returns the touched files."""


_BROKEN_ALREADY = (OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError)
_BROKEN_ALREADY += (Image.DecompressionBombError,)


def corrupt(root, kinds, random):
    """Break a set in several ways; skip a way that cannot read its file, which is broken already.

    Returns:
        The files that were changed.
    """
    touched = set()
    for kind in kinds:
        try:
            touched |= KINDS[kind](root, random)
        except _BROKEN_ALREADY:
            if not touched:
                raise
    return touched


def tally(judge, clean, args):
    """Return verdict counts by kind, the longest time in seconds, and descriptions of errors."""
    kinds = [*KINDS, "several at once"]
    table, slowest, wrong = {kind: Counter() for kind in kinds}, 0.0, []
    cache = os.environ["SPATIALFLOW_CACHE"] = str(clean.parent / "cache")
    for number in range(args.count):
        random, kind = Random(f"{args.seed} {number}"), kinds[number % len(kinds)]
        several = random.choices(list(KINDS), k=random.choice([2, 3]))
        root = clean.parent / f"set{number}"
        shutil.copytree(clean, root)
        touched = corrupt(root, [kind] if kind in KINDS else several, random)
        start = time.perf_counter()
        verdict, why = judge(root, touched)
        slowest = max(slowest, time.perf_counter() - start)
        table[kind][verdict] += 1
        if verdict == WRONG:
            wrong.append(f"{number} {kind} {'' if kind in KINDS else several}: {why}")
            if args.keep:
                shutil.copytree(root, Path(args.keep) / str(number), symlinks=True)
        shutil.rmtree(root)
        shutil.rmtree(cache, ignore_errors=True)
    return table, slowest, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="data sets to break")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="folder for sets that were judged wrongly")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clean = Path(folder) / "clean"
        write_clean_set(clean)
        table, slowest, wrong = tally(Judge(clean), clean, args)
    print(f"| corruption | tried | {' | '.join(VERDICTS)} |")
    print("|---|---" + "|---" * len(VERDICTS) + "|")
    for kind, counts in [*table.items(), ("all", sum(table.values(), Counter()))]:
        cells = [kind, sum(counts.values()), *(counts[v] for v in VERDICTS)]
        print(f"| {' | '.join(map(str, cells))} |")
    print(f"\nslowest: {slowest:.2f} s")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
