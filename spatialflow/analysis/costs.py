"""Parameters, multiply-adds, activations and time of a network and of its parts.

Multiply-adds and activations are counted by fvcore for one image of noise.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import torch
from detectron2.export.flatten import TracingAdapter
from detectron2.utils.analysis import FlopCountAnalysis as Detectron2FlopCount
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_analysis import JitModelAnalysis
from torch import nn

from darts.genotype import Genotype
from spatialflow.analysis.inputs import random_image

ROUNDS = 3
EVERYTHING = "everything"


def measure_parts(model: nn.Module, genotype: Genotype, size: tuple[int, int]) -> dict[str, Any]:
    """Measure a SpatialFlow network part by part.

    Args:
        model: Network in eval mode.
        genotype: Genotype of the network.
        size: Height and width of the image in pixels.

    Returns:
        ``parts``: for each part, and for ``everything``, ``parameters``, ``multiply_adds``,
        ``activations`` (numbers that convolutions, attention and matrix products write) and
        ``seconds`` (median of three passes). ``detections``: number of detected instances.
        ``size``: height and width.
    """
    batch = _batch(size)
    flops = _flops(model, batch)
    activations = _analysis(ActivationCountAnalysis, model, batch)
    seconds, total, detections = _times(model, batch)
    by_name = dict(model.named_modules())
    parts = {
        part: {
            "parameters": sum(p.numel() for n in names for p in by_name[n].parameters()),
            "multiply_adds": int(sum(flops.by_module()[f"model.{n}"] for n in names)),
            "activations": int(sum(activations.by_module()[f"model.{n}"] for n in names)),
            "seconds": sum(seconds.get(n, 0.0) for n in names),
        }
        for part, names in network_parts(model, genotype).items()
    }
    parts[EVERYTHING] = {
        "parameters": count_parameters(model),
        "multiply_adds": int(flops.total()),
        "activations": int(activations.total()),
        "seconds": total,
    }
    return {"parts": parts, "detections": detections, "size": list(size)}


def network_parts(model: nn.Module, genotype: Genotype) -> dict[str, list[str]]:
    """Return the parts of a SpatialFlow network, each with the names of its modules."""
    names = [name for name, _ in model.named_modules()]
    levels = [n for n in names if n.startswith("backbone.") and n.count(".") == 1]
    parts = {
        "backbone": ["backbone.bottom_up"],
        "FPN": [n for n in levels if not n.startswith("backbone.bottom_up")],
    }
    predictors = {"box": ["box_head.bbox_pred"], "cls": ["box_head.cls_score"]}
    nodes = [n for n in names if n.startswith("flow_graph.nodes.") and n.count(".") == 2]
    for branch in ("box", "cls", "stuff", "region", "mask"):
        mine = [n for n in nodes if n.split(".")[2].startswith(f"{branch}_")]
        if mine:
            parts[f"{branch} branch"] = mine + predictors.get(branch, [])
    for flow in genotype.flows:
        parts[f"flow {flow}"] = [f"flow_graph.flows.{flow.key}"]
    parts["stuff head"] = ["stuff_head"]
    parts["mask head"] = ["mask_head"]
    if "region_head" in names:
        # Its own forward pass is not called.
        parts["region head"] = ["region_head.box_head", "region_head.box_predictor"]
    if "residual" in names:
        parts["residual"] = ["residual"]
    return parts


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(p.numel() for p in model.parameters())


def count_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Count the multiply-adds of inference on one image of noise.

    Args:
        model: Network in eval mode, of any meta-architecture.
        size: Height and width of the image in pixels.
    """
    return int(_flops(model, _batch(size)).total())


def mean_gflops(model: nn.Module, images: list[list[dict[str, Any]]]) -> float:
    """Count the multiply-adds of inference, in 10^9, as the mean over images.

    Norms do not count here, as in Detectron2's own tables.

    Args:
        model: Network in eval mode, of any meta-architecture.
        images: Batches of one image each, as the test loader returns them.
    """
    totals = []
    for image in images:
        counter = Detectron2FlopCount(model, image)
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        totals.append(float(counter.set_op_handle(**OPERATIONS).total()) / 1e9)
    return statistics.mean(totals)


def _batch(size: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"image": random_image(size), "height": size[0], "width": size[1]}]


def _flops(model: nn.Module, batch: list[dict[str, Any]]) -> JitModelAnalysis:
    return _analysis(FlopCountAnalysis, model, batch).set_op_handle(**OPERATIONS)


def _analysis(
    kind: type[JitModelAnalysis], model: nn.Module, batch: list[dict[str, Any]]
) -> JitModelAnalysis:
    adapter = TracingAdapter(model, batch, allow_non_tensor=True)
    counter = kind(adapter, adapter.flattened_inputs)
    return counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


@torch.no_grad()
def _times(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[dict[str, float], float, int]:
    """Return the seconds in each module, the seconds in all, and the number of detections."""
    rounds: list[Counter[str]] = []
    handles = []
    for name, module in model.named_modules():
        stopwatch = _Stopwatch(name, rounds)
        handles.append(module.register_forward_pre_hook(stopwatch.start))
        handles.append(module.register_forward_hook(stopwatch.stop))
    for _ in range(ROUNDS):
        rounds.append(Counter())
        (result,) = model(batch)
    for handle in handles:
        handle.remove()
    median = {name: statistics.median(spent[name] for spent in rounds) for name in rounds[0]}
    return median, median[""], len(result["instances"])


class _Stopwatch:
    """Adds the seconds of a module's calls to the last round."""

    def __init__(self, name: str, rounds: list[Counter[str]]) -> None:
        self.name, self.rounds = name, rounds
        self.started = 0.0

    def start(self, *_: Any) -> None:
        self.started = _clock()

    def stop(self, *_: Any) -> None:
        self.rounds[-1][self.name] += _clock() - self.started  # type: ignore[assignment]


def _clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _deformable_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Count a deformable convolution: its own multiply-adds, and four for each sampled value."""
    weight, output = inputs[1].type().sizes(), outputs[0].type().sizes()
    positions = output[0] * output[2] * output[3]
    kernel = weight[1] * weight[2] * weight[3]
    channels = inputs[0].type().sizes()[1]
    return int(positions * (weight[0] * kernel + 4 * channels * weight[2] * weight[3]))


def _attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Count scaled dot-product attention: two matrix products."""
    query, key = inputs[0].type().sizes(), inputs[1].type().sizes()
    return int(2 * query[0] * query[1] * key[1] * query[2])


OPERATIONS = {
    "torchvision::deform_conv2d": _deformable_multiply_adds,
    "aten::scaled_dot_product_attention": _attention_multiply_adds,
}
"""Operations that fvcore does not count by itself."""
