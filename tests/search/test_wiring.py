"""How a search's parts are put together: budget, start, resume, and steps of second order."""

import pytest
import torch

from darts.architect import VirtualStep
from darts.relaxation import Architecture
from spatialflow.engine import Trainer
from spatialflow.modeling.heads import RegionHead
from spatialflow.search.hook import ArchitectureHook
from spatialflow.search.space import flow_costs
from spatialflow.search.trainer import SearchTrainer
from tests.conftest import GROUP_NORM
from tests.engine.test_resume import equal
from tests.modeling.test_refined import REFINED
from tests.search.test_search import SEARCH, VARIANTS, search


def hook_of(trainer):
    return next(hook for hook in trainer._hooks if isinstance(hook, ArchitectureHook))


def test_the_budget_is_in_units_of_the_human_flows(scenes_cfg):
    trainer = SearchTrainer(scenes_cfg({**SEARCH, "SEARCH.BUDGET": 0.5}))
    _, human = flow_costs(trainer.cfg, trainer.architecture.space.topology)
    assert hook_of(trainer).learner.budget == pytest.approx(human / 2)


def test_only_a_search_that_minds_cost_is_cut_to_the_budget(scenes_cfg):
    keys = {**SEARCH, "SEARCH.BUDGET": 1e-6, "SEARCH.SPACE.OPERATIONS": ["conv_1x1"]}
    found = []
    for cost in (0.0, 1.0):
        trainer = SearchTrainer(scenes_cfg({**keys, "SEARCH.COST": cost}))
        with torch.no_grad():
            for logits in trainer.architecture.edges.values():
                logits.copy_(torch.tensor([3.0, 0.0]))
        found.append(len(trainer.derivation.derive(0).flows))
    assert found == [36, 0]


def test_a_search_that_goes_on_keeps_what_it_has_learnt(scenes_cfg, monkeypatch):
    started = []
    monkeypatch.setattr("spatialflow.search.trainer.start_from", lambda *_: started.append(1))
    cfg = scenes_cfg({**SEARCH, "SEARCH.WEIGHTS": __file__, "SOLVER.MAX_ITER": 1})
    search(cfg)
    assert started == [1]
    SearchTrainer(cfg).resume_or_load(resume=True)
    assert started == [1]


def test_what_is_watched_survives_a_stop(scenes_cfg):
    keys = {"SEARCH.EIGENVALUE_PERIOD": 1, "SEARCH.STOP_RATIO": 0.75, "SOLVER.MAX_ITER": 3}
    cfg = scenes_cfg({**SEARCH, **keys, "SEARCH.WARMUP": 0.0})
    state = hook_of(search(cfg)).state_dict()
    assert len(state["watch"]["history"]) == 3
    resumed = hook_of(SearchTrainer(cfg))
    resumed.load_state_dict(state)
    equal(resumed.state_dict(), state)


def test_a_finite_step_of_the_architecture_begins_the_count_anew(scenes_cfg):
    trainer = SearchTrainer(scenes_cfg({**SEARCH, "SEARCH.WARMUP": 0.0, "SOLVER.MAX_ITER": 1}))
    hook = hook_of(trainer)
    hook.non_finite._in_a_row = 5
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert hook.non_finite._in_a_row == 0


def test_the_virtual_step_in_float16_is_that_of_gradients_without_their_scale(
    scenes_cfg, monkeypatch
):
    foreseen, take = [], VirtualStep.take

    def note(*given):
        foreseen.append(take(*given))
        return foreseen[-1]

    monkeypatch.setattr(VirtualStep, "take", note)
    amp = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "float16", **GROUP_NORM}
    keys = {**VARIANTS["second order"], "SEARCH.WARMUP": 0.0, "SOLVER.MAX_ITER": 12}
    keys |= {"SOLVER.IMS_PER_BATCH": 1}  # half precision is slow on CPUs
    trainer = search(scenes_cfg({**SEARCH, **amp, **keys}))
    # The first steps may be left out, as the scale starts too large.
    assert foreseen
    taken = dict(trainer.supernet.named_parameters())
    for name, weight in foreseen[-1].items():
        torch.testing.assert_close(taken[name], weight, msg=name)


def test_a_central_difference_sees_one_sample_of_proposals(scenes_cfg, monkeypatch):
    """A central difference compares passes through slightly different weights."""
    samples, losses = [], RegionHead.losses

    def note(self, *given):
        found = losses(self, *given)
        samples.append([image.proposal_boxes.tensor for image in found[1]])
        return found

    monkeypatch.setattr(RegionHead, "losses", note)
    keys = {**REFINED, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "SEARCH.WARMUP": 0.0}
    search(scenes_cfg({**SEARCH, **VARIANTS["second order"], **keys, "SOLVER.MAX_ITER": 1}))
    assert len(samples) == 4
    # The step's own pass, the held-out one, and the two of the central difference.
    for one, other in zip(*samples[2:], strict=True):
        assert torch.equal(one, other)


def test_a_search_with_identity_nodes_starts_from_a_trained_network(scenes_cfg, tmp_path):
    """Its genotype names these nodes, which the space does not search."""
    keys = {**REFINED, "MODEL.SPATIALFLOW.GENOTYPE": "parallel", "SOLVER.MAX_ITER": 1}
    cfg = scenes_cfg({**keys, "OUTPUT_DIR": str(tmp_path / "trained")})
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    weights = str(tmp_path / "trained" / "model_final.pth")
    started = SearchTrainer(scenes_cfg({**SEARCH, **keys, "SEARCH.WEIGHTS": weights}))
    started.resume_or_load(resume=False)
    trained = dict(trainer.model.named_parameters())
    found = dict(started.supernet.named_parameters())
    for name in ("region_head.box_head.fc1.weight", "flow_graph.nodes.cls_4.weight"):
        assert torch.equal(found[name], trained[name])
    assert not any("mask_1" in name for name in found if name.startswith("flow_graph.nodes."))


def test_all_passes_of_a_step_of_second_order_see_one_draw(scenes_cfg, monkeypatch):
    drawn, draw = [], Architecture.draw

    def note(self):
        draw(self)
        drawn.append(torch.cat([noise.flatten() for noise in self._noise.values()]))

    monkeypatch.setattr(Architecture, "draw", note)
    keys = {"SEARCH.RELAXATION": "gumbel", "SEARCH.WARMUP": 0.0, "SOLVER.MAX_ITER": 1}
    search(scenes_cfg({**SEARCH, **VARIANTS["second order"], **keys}))
    assert len(drawn) == 4
    assert all(torch.equal(one, drawn[0]) for one in drawn)
