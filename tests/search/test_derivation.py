"""What a search starts from and what it leaves: weights, genotype, provenance; when it stops."""

import json

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from darts.architect import Architect
from darts.genotype import Genotype
from darts.relaxation import architecture_parameters
from spatialflow.config import config_hash, get_cfg, identity, load_genotype
from spatialflow.search.derivation import cost_of
from spatialflow.search.space import flow_costs, search_space
from spatialflow.search.trainer import SearchTrainer
from tests.search.test_search import SEARCH, search


def outputs(model, image):
    """What the four branches give."""
    features = model.backbone(model.preprocess_image([image]).tensor)
    return model.flow_graph(features)


def assert_same_outputs(given, expected):
    for branch, levels in expected.items():
        for level, value in levels.items():
            scale = value.abs().max()
            torch.testing.assert_close(
                given[branch][level], value, rtol=1e-4, atol=1e-5 * scale.item()
            )


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", ["spatialflow", "parallel"])
def test_a_search_starts_as_the_network_whose_weights_it_gets(
    scenes_cfg, make_input, tmp_path, kind, name
):
    trained = build_model(scenes_cfg({"MODEL.SPATIALFLOW.GENOTYPE": name}))
    for parameter in trained.flow_graph.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    path = tmp_path / "trained.pth"
    torch.save({"model": trained.state_dict()}, path)
    keys = {
        "SEARCH.SPACE.OPERATIONS": ["conv_1x1", "conv_3x3", "sep_conv_3x3"],
        "SEARCH.RELAXATION": kind,
        "SEARCH.RULE": "threshold",
        "SEARCH.AUXILIARY_SKIP": 0.0,
        "SEARCH.WEIGHTS": str(path),
        "MODEL.SPATIALFLOW.GENOTYPE": name,
        "OUTPUT_DIR": str(tmp_path),
    }
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys}))
    trainer.resume_or_load(resume=False)
    with torch.no_grad():
        image = make_input(64, 64)
        assert_same_outputs(outputs(trainer.supernet, image), outputs(trained, image))
    # What was trained is there at once, and the α have not been touched.
    assert all(p.abs().max() < 0.1 for p in architecture_parameters(trainer.supernet).values())


def test_weights_of_another_genotype_are_refused(scenes_cfg, tmp_path):
    path = tmp_path / "trained.pth"
    torch.save({"model": build_model(scenes_cfg()).state_dict()}, path)
    keys = {"SEARCH.WEIGHTS": str(path), "MODEL.SPATIALFLOW.GENOTYPE": "parallel"}
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys}))
    with pytest.raises(ValueError, match=r"trained\.pth: .* other flows"):
        trainer.resume_or_load(resume=False)


def test_a_genotype_outside_of_the_space_is_no_start(scenes_cfg, tmp_path):
    path = tmp_path / "trained.pth"
    torch.save({"model": build_model(scenes_cfg()).state_dict()}, path)
    trainer = SearchTrainer(scenes_cfg({**SEARCH, "SEARCH.WEIGHTS": str(path)}))
    with pytest.raises(ValueError, match=r"box\.1 -> .* conv_3x3 has been trained, and is none"):
        trainer.resume_or_load(resume=False)


@pytest.mark.parametrize("rule", ["argmax", "top_inputs"])
def test_the_derived_network_can_start_with_the_supernets_weights(
    scenes_cfg, make_input, tmp_path, rule
):
    keys = {"SEARCH.RULE": rule, "SEARCH.INHERIT": True, "SEARCH.COST": 0.0}
    cfg = scenes_cfg({**SEARCH, **keys, "OUTPUT_DIR": str(tmp_path)})
    trainer = search(cfg)
    path = trainer.write_genotype()
    genotype = Genotype.load(path)
    derived = build_model(scenes_cfg({"MODEL.SPATIALFLOW.GENOTYPE": str(path)}))
    stored = torch.load(tmp_path / "inherited.pth", weights_only=True)["model"]
    derived.load_state_dict(stored)
    trainer.architecture.set_genotype(genotype)
    with torch.no_grad():
        image = make_input(64, 64)
        assert_same_outputs(outputs(derived, image), outputs(trainer.supernet, image))
    losses = genotype.provenance["held_out_loss"]
    assert losses["supernet"] > 0
    assert losses["derived"] != losses["supernet"]
    assert genotype.provenance["config"] == config_hash(cfg)


CHOICES = [
    "stuff.attention.levels=none,channel",
    "stuff.attention.merged=none,criss_cross,non_local",
    "cls.2.conv=plain,deformable",
]


@pytest.mark.parametrize("kind", ["softmax", "gumbel"])
def test_choices_are_searched_like_flows(scenes_cfg, make_input, tmp_path, kind):
    keys = {
        "SEARCH.SPACE.CHOICES": CHOICES,
        "SEARCH.RELAXATION": kind,
        "SEARCH.INHERIT": True,
        "SEARCH.BUDGET": 100.0,
        "OUTPUT_DIR": str(tmp_path),
    }
    trainer = search(scenes_cfg({**SEARCH, **keys}))
    learnt = trainer.architecture.choices["stuff_attention_merged"]
    assert learnt.abs().max() > 0.02, "the choice has not moved"
    with torch.no_grad():
        learnt.copy_(torch.tensor([0.0, 1.0, 9.0]))
        trainer.architecture.choices["cls_2_conv"].copy_(torch.tensor([0.0, 9.0]))
        # Blocks that are the identity at the start would hide a wrong one.
        for parameter in trainer.supernet.stuff_head.attention.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    path = trainer.write_genotype()
    genotype = Genotype.load(path)
    assert genotype.choices["stuff.attention.merged"] == "non_local"
    assert genotype.choices["cls.2.conv"] == "deformable"
    assert "stuff.attention.merged: non_local" in path.with_suffix(".svg").read_text()
    assert "stuff.attention.merged" in (tmp_path / "history.svg").read_text()
    derived = build_model(scenes_cfg({"MODEL.SPATIALFLOW.GENOTYPE": str(path)})).eval()
    derived.load_state_dict(torch.load(tmp_path / "inherited.pth", weights_only=True)["model"])
    trainer.architecture.set_genotype(genotype)
    supernet = trainer.supernet.eval()
    with torch.no_grad():
        image = make_input(64, 64)
        given, expected = (m([image])[0]["sem_seg"] for m in (derived, supernet))
        assert_same_outputs(outputs(derived, image), outputs(supernet, image))
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_a_choice_beyond_the_budget_is_not_taken(scenes_cfg, tmp_path):
    keys = {"SEARCH.SPACE.CHOICES": CHOICES, "SEARCH.BUDGET": 1e-6, "OUTPUT_DIR": str(tmp_path)}
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys}))
    with torch.no_grad():
        trainer.architecture.choices["stuff_attention_merged"].copy_(torch.tensor([0.0, 1.0, 9.0]))
    genotype = trainer.derivation.derive(0)
    assert set(genotype.choices.values()) <= {"none", "plain"}
    costs, human = flow_costs(trainer.cfg, trainer.architecture.space.topology)
    assert cost_of(genotype, costs) <= 1e-6 * human


def test_a_search_starts_with_the_attention_of_its_weights(scenes_cfg, make_input, tmp_path):
    genotype = Genotype("mine", choices={"stuff.attention.merged": "criss_cross"})
    genotype.save(tmp_path / "mine.json")
    own = {"MODEL.SPATIALFLOW.GENOTYPE": str(tmp_path / "mine.json")}
    trained = build_model(scenes_cfg(own))
    trained.stuff_head.attention["merged"].factor.data.fill_(3.0)
    torch.save({"model": trained.state_dict()}, tmp_path / "trained.pth")
    keys = {"SEARCH.SPACE.CHOICES": CHOICES, "SEARCH.WEIGHTS": str(tmp_path / "trained.pth")}
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **own, **keys}))
    trainer.resume_or_load(resume=False)
    option = trainer.supernet.stuff_head.attention["merged"].options["criss_cross"]
    assert option.factor == 3.0


def test_the_hash_of_a_config_is_not_of_where_it_writes(tiny_cfg):
    cfg = tiny_cfg({"OUTPUT_DIR": "here"})
    assert config_hash(cfg) == config_hash(tiny_cfg({"OUTPUT_DIR": "there"}))
    assert config_hash(cfg) != config_hash(tiny_cfg({"OUTPUT_DIR": "here", "SEED": 77}))
    packed = {"OUTPUT_DIR": "here", "MODEL.SPATIALFLOW.PACK_CONVOLUTIONS": True}
    assert config_hash(cfg) == config_hash(tiny_cfg(packed))


def test_a_search_freezes_where_the_curvature_grows(scenes_cfg, tmp_path, monkeypatch):
    eigenvalues = iter([1.0] * 5 + [10.0] * 90)
    monkeypatch.setattr(
        Architect, "dominant_eigenvalue", lambda self, batch: torch.tensor(next(eigenvalues))
    )
    keys = {
        "SEARCH.EIGENVALUE_PERIOD": 1,
        "SEARCH.STOP_RATIO": 0.75,
        "SEARCH.WARMUP": 0.0,
        "SOLVER.MAX_ITER": 12,
        "OUTPUT_DIR": str(tmp_path),
    }
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys}))
    (hook,) = [h for h in trainer._hooks if type(h).__name__ == "ArchitectureHook"]
    seen = []
    begin = hook.learner.begin

    def spy(iteration):
        state = {n: p.detach().clone() for n, p in hook.learner.parameters.items()}
        seen.append(torch.cat([value.flatten() for value in state.values()]))
        return begin(iteration)

    monkeypatch.setattr(hook.learner, "begin", spy)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert hook.learner.frozen
    # Frozen at the tenth step, with what it was after the fifth.
    assert torch.equal(seen[10], seen[5])
    assert torch.equal(seen[11], seen[5])
    assert not torch.equal(seen[9], seen[5])


def test_a_search_says_how_it_is_doing(scenes_cfg, tmp_path, caplog):
    keys = {"SEARCH.EIGENVALUE_PERIOD": 2, "OUTPUT_DIR": str(tmp_path), "SOLVER.MAX_ITER": 4}
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys, "SEARCH.WARMUP": 0.5}))
    with torch.no_grad():
        for logits in trainer.architecture.edges.values():
            logits.copy_(torch.tensor([5.0, 0.0, 0.0]))
    with caplog.at_level("DEBUG", logger="spatialflow"):
        trainer.train()
    assert "the architecture is frozen until iteration 2" in caplog.text
    assert "0 of 36 edges absent, 0 flips, none for 1 iterations, eigenvalue " in caplog.text
    assert "36 of 36 present edges prefer an operation without weights" in caplog.text
    assert "nearly tied" not in caplog.text
    with torch.no_grad():
        for logits in trainer.architecture.edges.values():
            logits.copy_(torch.tensor([0.1, 0.0, 0.0]))
    with caplog.at_level("WARNING", logger="spatialflow"):
        trainer.derivation.derive(4)
    assert "a share of 0.356 on average, and 0.333 is uniform: rule 'presence'" in caplog.text


def test_the_eigenvalue_is_logged(scenes_cfg, tmp_path):
    keys = {"SEARCH.EIGENVALUE_PERIOD": 2, "OUTPUT_DIR": str(tmp_path), "SOLVER.MAX_ITER": 4}
    search(scenes_cfg({**SEARCH, **keys}))
    line = json.loads((tmp_path / "search.jsonl").read_text().splitlines()[-1])
    assert line["eigenvalue"] != 0
    board = EventAccumulator(str(tmp_path)).Reload()
    assert {"search/entropy", "search/eigenvalue", "search/flips"} <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["search/probabilities"]


def test_a_prior_on_the_human_flows_is_said(scenes_cfg, tmp_path):
    keys = {"SEARCH.HUMAN_PRIOR": 5.0, "SEARCH.SPACE.OPERATIONS": ["identity", "conv_3x3"]}
    cfg = scenes_cfg({**SEARCH, **keys, "SEARCH.COST": 0.0, "OUTPUT_DIR": str(tmp_path)})
    genotype = SearchTrainer(cfg).derivation.derive(0)
    human = load_genotype("spatialflow")
    assert set(human.flows) <= set(genotype.flows)
    assert genotype.provenance["human_prior"] == 5.0


def test_derivation_by_perturbation_measures_and_puts_back(scenes_cfg):
    few = {"SEARCH.SPACE.PAIRS": ["box>mask", "box>cls"], "SEARCH.SPACE.STAGES": [4]}
    keys = {**SEARCH, **few, "SEARCH.RULE": "perturbation", "SEARCH.COST": 0.0}
    trainer = SearchTrainer(scenes_cfg({**keys, "SEARCH.PERTURBATION_BATCHES": 1}))
    before = {n: p.clone() for n, p in architecture_parameters(trainer.supernet).items()}
    genotype = trainer.derivation.derive(0)
    assert genotype == trainer.derivation.derive(0)
    search_space(trainer.cfg).check(genotype)
    for name, parameter in architecture_parameters(trainer.supernet).items():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("rule", ["presence", "perturbation"])
def test_derivation_leaves_the_supernet_as_it_is(scenes_cfg, rule):
    """Batch norms in training mode change their statistics with every pass."""
    keys = {"MODEL.RESNETS.NORM": "BN", "SEARCH.RULE": rule, "SEARCH.PERTURBATION_BATCHES": 1}
    trainer = SearchTrainer(scenes_cfg({**SEARCH, **keys}))
    supernet = trainer.supernet.eval()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    trainer.derivation.derive(0)
    assert [
        n for n, value in supernet.state_dict().items() if not torch.equal(value, before[n])
    ] == []
    assert not supernet.training


def test_a_key_that_a_version_adds_leaves_the_hash_as_it_was(tiny_cfg, monkeypatch):
    before = config_hash(tiny_cfg({}))

    def with_another() -> CfgNode:
        cfg = get_cfg()
        cfg.SEARCH.ADDED_LATER = 1
        return cfg

    monkeypatch.setattr(identity, "get_cfg", with_another)
    later = tiny_cfg({})
    later.SEARCH.ADDED_LATER = 1
    assert config_hash(later) == before
