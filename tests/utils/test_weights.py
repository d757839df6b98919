"""Files of weights that are damaged, not finite, or of another type are refused by every reader."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spatialflow.engine import Checkpointer
from spatialflow.modeling.backbone.trunks import build_trunk
from spatialflow.reference.conversion import read_reference_checkpoint
from spatialflow.utils.errors import CheckpointError, ConfigError
from spatialflow.utils.weights import check_archive, check_finite, check_state


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def save(tmp_path, changes=None, **options):
    """Save the state of `network()` with some tensors replaced."""
    path = tmp_path / "weights.pth"
    state = {**network().state_dict(), **(changes or {})}
    torch.save({"model": state}, path, **options)
    return path


def load(path, **options):
    """Load it as a training does, and as an evaluation does; return the models."""
    models = [network(), network().eval()]
    for model in models:
        Checkpointer(model, **options).load(str(path), checkpointables=[])
    return models


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def place_of_weight(path):
    """The place in the file of a byte of the weight of the convolution."""
    weight = torch.load(path, weights_only=True)["model"]["0.weight"].numpy().tobytes()
    return path.read_bytes().index(weight) + 6


def test_one_flipped_bit_is_noticed(tmp_path):
    path = save(tmp_path)
    flip(path, place_of_weight(path))
    with pytest.raises(
        CheckpointError, match=rf"{path}: damaged: the checksum of its part .*data/"
    ):
        load(path)
    with pytest.raises(CheckpointError, match=f"{path}: damaged"):
        read_reference_checkpoint(path)
    load(path, check_weights=False)


def test_no_flipped_bit_changes_a_weight_in_silence(tmp_path):
    path = save(tmp_path)
    good, refused = path.read_bytes(), 0
    before = [m.state_dict() for m in load(path)]
    for place in range(0, len(good), 37):
        flip(path, place)
        try:
            after = [m.state_dict() for m in load(path)]
        except CheckpointError:
            refused += 1
        else:  # the byte means nothing
            for old, new in zip(before, after, strict=True):
                assert all(torch.equal(old[k], new[k]) for k in old)
        path.write_bytes(good)
    assert refused > 20


def test_files_without_checksums_are_read(tmp_path):
    load(save(tmp_path, _use_new_zipfile_serialization=False))
    (tmp_path / "zoo.pkl").write_bytes(
        pickle.dumps({k: v.numpy() for k, v in network().state_dict().items()})
    )
    Checkpointer(network()).load(str(tmp_path / "zoo.pkl"), checkpointables=[])


def test_a_broken_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("name", "text")
    flip(tmp_path / "a.pth", 0)
    with pytest.raises(CheckpointError, match=r"a.pth: damaged"):
        check_archive(tmp_path / "a.pth")


ONES = torch.ones(4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_named(tmp_path, value, name, dtype):
    broken = network().state_dict()[name].to(dtype)
    broken.view(-1)[2] = value
    path = save(tmp_path, {name: broken})
    with pytest.raises(
        CheckpointError, match=f"{path}: NaN or infinity in {name}; .*CHECK_WEIGHTS"
    ):
        load(path)
    load(path, check_weights=False)
    torch.save({"state_dict": {f"model.{name}": broken}}, path)
    with pytest.raises(CheckpointError, match=f"{path}: NaN or infinity in model.{name}"):
        read_reference_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "value", "given"),
    [
        ("0.bias", ONES.int(), "int32"),
        ("0.bias", ONES.bool(), "bool"),
        ("0.bias", ONES.to(torch.complex64), "complex64"),
        ("0.bias", ONES.to_sparse(), "sparse_coo float32"),
        ("0.bias", torch.quantize_per_tensor(ONES, 0.1, 0, torch.qint8), "qint8"),
        ("0.bias", ONES.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        ("0.bias", ONES.to("meta"), "without data, float32"),
        ("1.running_mean", ONES.long(), "int64"),
        ("1.num_batches_tracked", torch.tensor(1.0), "float32"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_tensors_of_another_type_are_named(tmp_path, name, value, given, check):
    path = save(tmp_path, {name: value})
    expected = "int64" if "num_batches" in name else "float32"
    message = rf"{path}: tensors of a wrong type: {name} \(given {given}, expected {expected}\)"
    with pytest.raises(CheckpointError, match=message):
        load(path, check_weights=check)


@pytest.mark.parametrize("array", [np.array(["a"] * 4), np.array([None] * 4)])
def test_arrays_without_numbers_are_named(tmp_path, array):
    content = {"model": {"0.bias": array}, "__author__": "me"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"zoo.pkl: "):
        Checkpointer(network()).load(str(tmp_path / "zoo.pkl"), checkpointables=[])


def test_what_means_the_same_is_cast(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {
            k: v.to(dtype) if v.is_floating_point() else v.int()
            for k, v in network().state_dict().items()
        }
        load(save(tmp_path, state))
    large = {"0.weight": torch.full((4, 3, 1, 1), 3e38)}  # a sum of these is infinite
    load(save(tmp_path, large))
    load(save(tmp_path, {"0.bias": torch.ones(1).expand(4)}))


def test_a_tensor_that_repeats_its_numbers_takes_no_time():
    huge = torch.ones(1).expand(10**15)
    check_finite("file", [("huge", huge)])
    with pytest.raises(CheckpointError, match="NaN or infinity in huge"):
        check_finite("file", [("huge", torch.full((1,), np.nan).expand(10**15))])


def state_of_training(**changes):
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), **changes}
    groups = [{"lr": changes.get("lr", 0.1), "params": [0]}]
    moments.pop("lr", None)
    return {"trainer": {"_trainer": {"optimizer": {"state": {0: moments}, "param_groups": groups}}}}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"exp_avg": torch.tensor([0, np.nan])}, "NaN or infinity in .*optimizer.state.0.exp_avg"),
        ({"exp_avg": torch.zeros(2).int()}, r"tensors of a wrong type: .*exp_avg \(given int32\)"),
        ({"step": torch.tensor(3 + 1j)}, r"tensors of a wrong type: .*step \(given complex64\)"),
        ({"lr": float("nan")}, "not finite: .*param_groups.0.lr"),
    ],
)
def test_the_state_of_an_optimiser_is_checked(changes, problem):
    check_state("file", state_of_training(), finite=True)
    with pytest.raises(CheckpointError, match=f"file: {problem}"):
        check_state("file", state_of_training(**changes), finite=True)


@pytest.fixture
def trunk_file(tmp_path, monkeypatch):
    """Return a function that saves a timm trunk with some tensors changed."""
    trunk = build_trunk("timm:test_resnet")

    def write(change):
        path = Path(tmp_path, "trunk.pth")
        torch.save({k: change(v) for k, v in trunk.network.state_dict().items()}, path)
        return str(path)

    return write


def test_weights_of_a_trunk_are_checked(trunk_file):
    path = trunk_file(lambda v: v)
    build_trunk("timm:test_resnet", True, path)
    flip(Path(path), len(Path(path).read_bytes()) // 2)
    with pytest.raises(CheckpointError, match=r"trunk.pth: damaged"):
        build_trunk("timm:test_resnet", True, path)
    build_trunk("timm:test_resnet", True, path, check_weights=False)
    path = trunk_file(lambda v: v * np.nan if v.is_floating_point() else v)
    with pytest.raises(CheckpointError, match=r"trunk.pth: NaN or infinity in conv1"):
        build_trunk("timm:test_resnet", True, path)
    with pytest.raises(
        ConfigError, match=r"trunk.pth: .*floating-point numbers expected, torch.int"
    ):
        build_trunk("timm:test_resnet", True, trunk_file(lambda v: (10 * v).int()))
