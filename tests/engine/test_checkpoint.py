"""Checkpoints: written whole, read without running anything, refused where they do not fit."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spatialflow.engine import Checkpointer
from spatialflow.utils.errors import CheckpointError
from spatialflow.utils.files import remove_partial_files, write_atomically
from spatialflow.utils.numpy_pickle import load_numpy_pickle


class State:
    """Something else to store."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def network(width=3):
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


@pytest.fixture
def saved(tmp_path):
    """The folder of a checkpoint of `network()`."""
    model = network()
    Checkpointer(model, str(tmp_path), trainer=State(5)).save("model_0000001", iteration=1)
    return tmp_path


def resume(folder, model=None, **parts):
    parts = parts or {"trainer": State()}
    checkpointer = Checkpointer(model or network(), str(folder), **parts)
    return checkpointer.resume_or_load("", resume=True), parts


def test_what_was_saved_comes_back(saved):
    model, state = network(), State()
    rest = Checkpointer(model, str(saved), trainer=state).resume_or_load("", resume=True)
    assert state.value == 5
    assert rest["iteration"] == 1
    stored = torch.load(saved / "model_0000001.pth", weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, stored[name])


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(saved, keep):
    path = saved / "model_0000001.pth"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=f"{path}: not a whole file of weights"):
        resume(saved)


@given(st.binary(max_size=300))
def test_foreign_bytes_are_named(content):
    for suffix in (".pth", ".pkl", ".pyth"):
        path = Path(os.environ.get("TMPDIR", "/tmp"), f"foreign-{os.getpid()}{suffix}")
        path.write_bytes(content)
        try:
            with pytest.raises(CheckpointError, match=path.name):
                Checkpointer(network()).load(str(path), checkpointables=[])
        finally:
            path.unlink()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], r"\[1, 2\] found, named tensors expected"),
        ({"epoch": 3}, "named tensors expected, these are none: epoch"),
        ({"model": {}}, "{} found, named tensors expected"),
        ({"model": {"0.weight": "text"}}, "these are none: 0.weight"),
        ({"model": {"encoder.weight": torch.ones(2)}}, "none of its tensors fits.*encoder.weight"),
    ],
)
def test_files_of_other_content_are_named(tmp_path, content, problem):
    path = tmp_path / "foreign.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"foreign.pth.*{problem}"):
        Checkpointer(network()).load(str(path), checkpointables=[])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="absent.pth"):
        Checkpointer(network()).load(str(tmp_path / "absent.pth"), checkpointables=[])


@pytest.mark.parametrize("content", ["model_0000009.pth", "", "\n"])
def test_a_last_checkpoint_that_is_not_there(saved, content):
    (saved / "last_checkpoint").write_text(content)
    with pytest.raises(CheckpointError, match=r"last_checkpoint names .*model_0000001.pth"):
        resume(saved)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (network(4), r"wrong shape 0.weight: \(3, 2\) in the file, \(4, 2\) in the model"),
        (nn.Sequential(*network(), nn.Linear(1, 1)), "only in the model 2.weight, 2.bias"),
        (network()[:1], "only in the file 1.weight, 1.bias"),
    ],
)
def test_a_checkpoint_of_another_model(saved, model, problem):
    with pytest.raises(
        CheckpointError, match=f"model_0000001.pth is of another model: .*{problem}"
    ) as raised:
        resume(saved, model)
    assert ("only in the model" in str(raised.value)) == ("only in the model" in problem)
    model.eval()
    with pytest.raises(CheckpointError, match=problem):
        Checkpointer(model).load(str(saved / "model_0000001.pth"), checkpointables=[])


def test_a_training_may_start_from_a_part(saved):
    model = nn.Sequential(*network(), nn.Linear(1, 1))
    Checkpointer(model).load(str(saved / "model_0000001.pth"), checkpointables=[])
    stored = torch.load(saved / "model_0000001.pth", weights_only=True)["model"]
    assert torch.equal(model[0].weight, stored["0.weight"])


def test_weights_alone_cannot_be_resumed(tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "last_checkpoint").write_text("weights.pth")
    with pytest.raises(CheckpointError, match=r"weights.pth: no state of trainer, only weights"):
        resume(tmp_path)


def test_states_of_another_optimizer(saved):
    class Other(State):
        def load_state_dict(self, state):
            self.value = state["momentum"]

    with pytest.raises(CheckpointError, match=r"model_0000001.pth: has no 'momentum'"):
        resume(saved, trainer=Other())


@pytest.mark.parametrize("iteration", ["3", -1, 2.0, True, None, torch.tensor(3)])
def test_an_iteration_that_is_no_number_is_named(saved, iteration):
    path = saved / "model_0000001.pth"
    content = torch.load(path, weights_only=True)
    content["trainer"]["iteration"] = iteration
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=r"model_0000001.pth: trainer.iteration is .* expected"
    ):
        resume(saved)


@pytest.mark.parametrize("state", ["text", 3, None, [1, 2], {"value": "text"}])
def test_a_state_of_another_kind_is_named(saved, state):
    class Strict(State):
        def load_state_dict(self, state):
            self.value = state["value"] + 1

    path = saved / "model_0000001.pth"
    torch.save({**torch.load(path, weights_only=True), "trainer": state}, path)
    with pytest.raises(CheckpointError, match=r"model_0000001.pth: not a state of trainer: "):
        resume(saved, trainer=Strict())


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
@pytest.mark.parametrize("place", ["whole", "inside"])
def test_a_malicious_file_runs_nothing(tmp_path, suffix, place):
    mark, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
    evil = Malicious(mark)
    content = evil if place == "whole" else {"model": {"0.weight": evil}, "__author__": "me"}
    with path.open("wb") as file:
        if suffix == ".pkl":
            pickle.dump(content, file)
        else:
            torch.save(content, file)
    with pytest.raises(CheckpointError, match=f"evil{suffix}: .*more than weights"):
        Checkpointer(network()).load(str(path), checkpointables=[])
    assert not mark.exists()
    # The file does what it is made for where pickles are trusted.
    torch.load(path, weights_only=False) if suffix != ".pkl" else pickle.loads(path.read_bytes())
    assert mark.exists()


@pytest.mark.parametrize("code", ["cos\nsystem\n(S'true'\ntR.", "cbuiltins\neval\n(S'1'\ntR."])
def test_only_the_names_of_arrays_are_looked_up(tmp_path, code):
    path = tmp_path / "evil.pkl"
    path.write_bytes(code.encode())
    with pytest.raises(pickle.UnpicklingError, match="is not an array's"):
        load_numpy_pickle(str(path))


@pytest.mark.parametrize("protocol", [0, 2, 4, pickle.HIGHEST_PROTOCOL])
@pytest.mark.parametrize("style", ["detectron2", "caffe2", "blobs"])
def test_zoo_files_are_read_as_detectron2_reads_them(tmp_path, protocol, style):
    rng = np.random.default_rng(0)
    weights = {
        "0.weight": rng.normal(size=(3, 2)).astype(np.float32),
        "0.bias": rng.normal(size=3).astype(np.float32),
    }
    content = {
        "detectron2": {"model": weights, "__author__": "somebody", "matching_heuristics": True},
        "caffe2": {**weights, "0.weight_momentum": weights["0.weight"]},
        "blobs": {"blobs": {**weights, "0.weight_momentum": weights["0.weight"]}},
    }[style]
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    theirs, ours = network(), network()
    theirs[1], ours[1] = nn.Linear(3, 1), nn.Linear(3, 1)
    DetectionCheckpointer(theirs).load(str(path), checkpointables=[])
    Checkpointer(ours).load(str(path), checkpointables=[])
    assert torch.equal(ours[0].weight, torch.from_numpy(weights["0.weight"]))
    assert torch.equal(theirs[0].weight, ours[0].weight)
    assert torch.equal(theirs[0].bias, ours[0].bias)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"ne")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_partial_files_are_removed_by_name_alone(saved):
    (saved / ".model_0000003.pth.abc.partial").write_bytes(b"half")
    resume(saved)  # a reader leaves what another process may be writing
    assert len(os.listdir(saved)) == 3
    remove_partial_files(saved)
    assert sorted(os.listdir(saved)) == ["last_checkpoint", "model_0000001.pth"]


def test_files_have_the_permissions_that_open_gives(tmp_path):
    (tmp_path / "opened").write_text("")
    write_atomically(tmp_path / "file", lambda file: file.write(b""))
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "opened").stat().st_mode


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from torch import nn
from spatialflow.engine import Checkpointer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpointer = Checkpointer(nn.Linear(1000, 1000), sys.argv[1])
try:
    checkpointer.save("model_0000002")
except OSError as error:
    print(error.errno, error.filename)
"""


def test_a_full_disk_is_named_and_loses_nothing(saved):
    """The limit of a file's size fails a write in the middle, as a full disk does."""
    before = {name: (saved / name).read_bytes() for name in os.listdir(saved)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FULL_DISK, saved],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.stdout.split()[1] == str(saved / "model_0000002.pth")
    assert {name: (saved / name).read_bytes() for name in os.listdir(saved)} == before


def test_a_folder_that_cannot_be_written_is_named():
    if not Path("/sys").is_dir():
        pytest.skip("needs a folder that even root cannot write to")
    with pytest.raises(OSError, match="/sys/model.pth") as raised:
        write_atomically("/sys/model.pth", lambda file: file.write(b""))
    assert raised.value.errno
