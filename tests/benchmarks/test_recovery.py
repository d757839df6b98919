"""Planted flows: the task, how a result is counted, and one search that has to find its flow."""

import pytest
import torch

from benchmarks import recovery
from benchmarks.recovery import Student, Task, losses, score, space_of
from darts.genotype import Flow, Genotype
from darts.inheritance import warm_start
from darts.relaxation import Relaxation


@pytest.fixture
def task():
    return Task(space_of("default"), 1)


def test_a_student_with_the_planted_flow_is_the_teacher(task):
    student = Student(task, space_of("default"), Relaxation())
    student.architecture.set_genotype(Genotype("planted", (task.planted,)))
    carrier = task.teacher.flows[task.planted.key].state_dict()
    warm_start(student.flow_graph.flows[task.planted.key], task.planted.operation, carrier)
    with torch.no_grad():
        assert max(losses(student, task.batch(3)).values()) < 1e-6


def test_without_the_flow_the_task_is_not_solved(task):
    student = Student(task, space_of("default"), Relaxation())
    student.architecture.set_genotype(Genotype("nothing"))
    with torch.no_grad():
        missing = losses(student, task.batch(3))
    branch = task.planted.target.split(".")[0]
    assert missing[branch] > 0.02
    others = [value for name, value in missing.items() if name != branch]
    # What does not depend on the planted flow is solved by the teacher's own nodes.
    assert min(others) < 1e-6
    with torch.no_grad():
        again = losses(student, task.batch(3))
    assert again == missing


def test_tasks_differ_by_seed():
    planted = {Task(space_of("default"), seed).planted for seed in range(20)}
    assert len(planted) > 12


def test_how_a_result_is_counted():
    planted = Flow("box.1", "cls.1", "input", "conv_3x3")
    other = Flow("box.2", "cls.2", "input", "conv_3x3")
    same_edge = Flow("box.1", "cls.1", "input", "conv_1x1")

    def of(*found):
        return score({"planted": planted.to_dict(), "found": [f.to_dict() for f in found]})

    assert of(planted) == (True, True, 0)
    assert of(same_edge, other) == (True, False, 1)
    assert of(other) == (False, False, 1)
    assert of() == (False, False, 0)


@pytest.mark.parametrize("name", recovery.SEARCHES)
def test_every_search_runs_on_the_task(name):
    result = recovery.run_one(name, 1, ["SOLVER.MAX_ITER", "2"])
    assert result["contestant"] == name
    assert Flow.from_dict(result["planted"])


@pytest.mark.slow
def test_the_default_search_finds_a_planted_flow():
    result = recovery.run_one("default", 1, ["SOLVER.MAX_ITER", "120"])
    edge, _, others = score(result)
    assert edge
    assert others == 0
