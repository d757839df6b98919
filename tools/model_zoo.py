#!/usr/bin/env python
"""Write docs/model_zoo.md from docs/model_zoo.json.

python tools/model_zoo.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spatialflow.analysis.tables import table

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "model_zoo.json"
PAGE = ROOT / "docs" / "model_zoo.md"

CONFIG = "--config-file coco/spatialflow_r50_20e.yaml"
CONVERTING = f"""\
The authors' repository links weights. Download a file there, then convert and evaluate it:

    spatialflow import-weights --input THEIRS.pth --output r50.pth {CONFIG}
    spatialflow evaluate {CONFIG} MODEL.WEIGHTS r50.pth

For the others take the config beside them; R101-DCN in six views by `TEST.AUG.ENABLED True`. We
have not run this, as their files were not at hand: [parity.md](parity.md) says what was compared
with outputs of their code, and what was not."""


def render(content: dict[str, Any]) -> str:
    """Return the page.

    Args:
        content: Content of docs/model_zoo.json.
    """

    def config(name: str) -> str:
        return f"[{name}](../configs/{name})"

    measured = [
        [x["name"], config(x["config"]), x["data"], x["PQ"], x["PQ_th"], x["PQ_st"], x["training"]]
        for x in content["measured"]
    ]
    commands = "\n".join(f"    {x['command']}" for x in content["measured"])
    reported = [
        [
            f"[{x['name']}]({x['source']})",
            config(x["config"]),
            x["data"],
            x["PQ"],
            x["PQ_th"],
            x["PQ_st"],
        ]
        for x in content["reported"]
    ]
    head = ["model", "config", "data", "PQ", "things", "stuff"]
    parts = [
        "# Model zoo",
        "Written by `tools/model_zoo.py` from [model_zoo.json](model_zoo.json).",
        "## Measured here",
        "Two CPU cores, one run each; intervals over images. More in [results.md](results.md).",
        table([*head, "training"], measured),
        commands,
        "Weights are not for download: each is minutes away by its command.",
        "## Not run here",
        "\n".join(f"- {config(name)}" for name in content["not_run"]),
        "## Reported by the authors, for their code",
        table(head, reported),
        CONVERTING,
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(json.loads(SOURCE.read_text())))
