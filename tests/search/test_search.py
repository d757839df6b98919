"""The search: the supernet, its alternation, resume, and the genotype it writes."""

import json
from html import escape

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.func import functional_call

from darts.architect import Architect, VirtualStep
from darts.genotype import Genotype
from darts.inheritance import inherited
from darts.relaxation import Architecture, Relaxation, architecture_parameters, choice_key
from spatialflow.cli.search import prepare
from spatialflow.config import get_cfg, load_genotype
from spatialflow.config.options import ATTENTION_SITES, SUPERNET
from spatialflow.data.selection import in_validation_split
from spatialflow.engine import prepare_config
from spatialflow.modeling.flow_graph import FlowGraph
from spatialflow.modeling.heads.attention import attention_channels, attention_multiply_adds
from spatialflow.search.space import (
    flow_costs,
    random_genotypes,
    search_space,
    write_genotypes,
)
from spatialflow.search.split import split_filter
from spatialflow.search.supernet import FixedProposalBatch, relaxed_flow_graph
from spatialflow.search.trainer import SearchTrainer
from spatialflow_cli.commands import COMMANDS, parser_of
from tests.engine.test_resume import checkpoint, equal

SEARCH = {
    "MODEL.META_ARCHITECTURE": SUPERNET,
    "SEARCH.ARCHITECTURE_FRACTION": 0.5,
    "SEARCH.WARMUP": 0.2,
    "SEARCH.SPACE.OPERATIONS": ["identity", "conv_1x1"],
    "SEARCH.OPTIMIZER.LR": 0.1,
    "SEARCH.COST": 1.0,
    "SEARCH.BETA_DECAY": 0.1,
    "SEARCH.ENTROPY": 0.1,
    "SEARCH.AUXILIARY_SKIP": 0.5,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.MAX_ITER": 5,
    "DATASETS.TEST": (),
}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "gumbel"])
@pytest.mark.parametrize("name", ["spatialflow", "parallel"])
def test_a_one_hot_supernet_is_the_derived_network(tiny_cfg, kind, name):
    cfg = tiny_cfg()
    architecture = Architecture(search_space(cfg), Relaxation(kind))
    assert len(architecture.space.edges) == 36
    genotype = load_genotype(name)
    bare = Genotype(genotype.name, genotype.flows)
    supernet = relaxed_flow_graph(architecture, channels=16)
    for parameter in supernet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    graph = FlowGraph.from_genotype(bare, channels=16)
    graph.nodes.load_state_dict(supernet.nodes.state_dict())
    for flow in bare.flows:
        state = inherited(supernet.flows[flow.key], flow.operation)
        graph.flows[flow.key].load_state_dict(state)
    architecture.set_genotype(bare)
    architecture.draw()
    features = {f"p{i}": torch.randn(2, 16, 2 ** (8 - i), 2 ** (8 - i)) for i in range(3, 8)}
    given, expected = supernet(features), graph(features)
    for branch, levels in expected.items():
        for level, value in levels.items():
            torch.testing.assert_close(given[branch][level], value, rtol=1e-5, atol=1e-6)


def test_every_parameter_of_the_supernet_learns(tiny_cfg, make_input):
    model = build_model(tiny_cfg({"MODEL.META_ARCHITECTURE": SUPERNET}))
    with EventStorage():
        sum(model([make_input(64, 64)]).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    for name, parameter in architecture_parameters(model).items():
        assert parameter.grad.abs().sum() > 0, name


def test_costs_are_in_units_of_the_human_flows(tiny_cfg):
    cfg = tiny_cfg()
    costs, human = flow_costs(cfg, search_space(cfg).topology)
    mine = sum(costs[f.key, f.operation] for f in load_genotype("spatialflow").flows)
    assert mine == pytest.approx(human)
    # Nine multiply-adds a weight at strides 8, 16 and 32, at 32 channels.
    assert costs["box_4_to_mask_1_input", "conv_3x3"] == pytest.approx(
        9 * 32**2 * (8**-2 + 16**-2 + 32**-2)
    )
    assert costs["box_4_to_mask_1_input", "identity"] == 0


def test_attention_costs_what_its_blocks_do_on_their_maps(tiny_cfg):
    keys = {"IN_FEATURES": ["p3", "p4"], "COMMON_STRIDE": 8}
    cfg = tiny_cfg({f"MODEL.SEM_SEG_HEAD.{key}": value for key, value in keys.items()})
    costs, _ = flow_costs(cfg, search_space(cfg).topology)

    def block(site, area):
        width = attention_channels(cfg, site)
        return attention_multiply_adds("non_local", width, 1e6 * area) / 1e6

    levels, merged = ATTENTION_SITES
    # Of each level its own block, for an image of one megapixel.
    assert costs[choice_key(levels), "non_local"] == pytest.approx(
        block(levels, 8**-2) + block(levels, 16**-2)
    )
    assert costs[choice_key(merged), "non_local"] == pytest.approx(block(merged, 8**-2))
    assert costs[choice_key(merged), "none"] == 0


def search(cfg, *, resume=False, seed=0):
    torch.manual_seed(seed)
    trainer = SearchTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


VARIANTS = {
    "softmax": {},
    "gumbel": {"SEARCH.RELAXATION": "gumbel"},
    "sigmoid": {"SEARCH.RELAXATION": "sigmoid"},
    "second order": {"SEARCH.ORDER": 2, "SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 0.01},
    "partial": {"SEARCH.PARTIAL_CHANNELS": 4, "SEARCH.EDGE_WEIGHTS": "independent"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_search_learns_resumes_exactly_and_derives(scenes_cfg, tmp_path, variant):
    keys = {**SEARCH, **VARIANTS[variant]}
    whole = scenes_cfg({**keys, "OUTPUT_DIR": str(tmp_path / "whole")})
    trainer = search(whole)
    weights = {id(p) for g in trainer.step_trainer.optimizer.param_groups for p in g["params"]}
    architecture = architecture_parameters(trainer.supernet)
    assert not weights & {id(p) for p in architecture.values()}
    assert len(weights) + len(architecture) == len(list(trainer.supernet.parameters()))
    learnt = torch.cat([p.detach().flatten() for p in architecture.values()])
    assert learnt.abs().max() > 0.05, "the architecture has not moved"

    stopped = scenes_cfg({**keys, "OUTPUT_DIR": str(tmp_path / "stopped")})
    search(stopped)
    (tmp_path / "stopped" / "model_final.pth").unlink()
    (tmp_path / "stopped" / "last_checkpoint").write_text("model_0000002.pth")
    resumed = search(stopped, resume=True, seed=9)
    assert resumed.start_iter == 3
    equal(checkpoint(stopped), checkpoint(whole))

    path = resumed.write_genotype()
    genotype = Genotype.load(path)
    search_space(whole).check(genotype)
    costs, human = flow_costs(whole, resumed.architecture.space.topology)
    assert sum(costs[f.key, f.operation] for f in genotype.flows) <= human
    assert path.with_suffix(".svg").read_text().count("<title>") == 1 + len(genotype.flows)
    report = (tmp_path / "stopped" / "report.html").read_text()
    for heading in ("Searched and human", "Flows", "How the search went", "Held-out images"):
        assert f">{heading}</h2>" in report
    history = (tmp_path / "stopped" / "history.svg").read_text()
    edges = resumed.architecture.space.edges
    assert all(f">{escape(str(edge))}<" in history for edge in edges)
    line = json.loads((tmp_path / "whole" / "search.jsonl").read_text().splitlines()[-1])
    assert line["iteration"] == 4
    assert len(line["probabilities"]) == 36
    assert line["entropy"] > 0
    # The derived network builds and trains.
    derived = scenes_cfg({"MODEL.SPATIALFLOW.GENOTYPE": str(path)})
    assert len(build_model(derived).flow_graph.flows) == len(genotype.flows)


def test_random_genotypes_are_written_within_the_budget(tiny_cfg, tmp_path):
    cfg = tiny_cfg({"MODEL.META_ARCHITECTURE": SUPERNET, "OUTPUT_DIR": str(tmp_path)})
    paths = write_genotypes(random_genotypes(cfg, 5, 3), tmp_path)
    assert [path.name for path in paths] == [f"random_{i}.json" for i in range(3, 8)]
    genotypes = [Genotype.load(path) for path in paths]
    assert len({genotype.hash for genotype in genotypes}) == 5
    costs, human = flow_costs(cfg, search_space(cfg).topology)
    for genotype in genotypes:
        search_space(cfg).check(genotype)
        assert sum(costs[f.key, f.operation] for f in genotype.flows) <= human


@pytest.mark.parametrize("count", ["0", "-3"])
def test_a_wrong_number_of_random_genotypes_is_one_line(program, count):
    done = program("search_net.py", "--config-file", "search/default.yaml", "--random", count)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"search_net.py: --random {count} --seed 0 given" in done.stderr


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SEARCH.BUDGET", "-1"),
        ("SEARCH.RELAXATION", "hardmax"),
        ("SEARCH.EDGE_WEIGHTS", "squared"),
        ("SEARCH.PARTIAL_CHANNELS", "3"),
        ("SEARCH.OPTIMIZER.LR", "0.0"),
        ("SEARCH.OPTIMIZER.BETAS", "[0.5]"),
        ("SEARCH.ARCHITECTURE_FRACTION", "1.0"),
        ("SEARCH.SPACE.OPERATIONS", "['conv_9x9']"),
    ],
)
def test_random_genotypes_are_of_configs_that_a_search_takes(tiny_cfg, tmp_path, key, value):
    words = ["--config-file", "search/default.yaml", "--random", "1", key, value]
    words += ["OUTPUT_DIR", str(tmp_path / "output")]
    name = "SEARCH: " if key in ("SEARCH.RELAXATION", "SEARCH.EDGE_WEIGHTS") else key
    with pytest.raises(ValueError, match=name.removesuffix(".OPERATIONS")):
        prepare(parser_of(COMMANDS["search"], "search").parse_args(words))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "file",
    [
        "search/default.yaml",
        "search/darts_original.yaml",
        "search/nuclei.yaml",
        "search/nuclei_darts_original.yaml",
        "search/gates.yaml",
        "search/nuclei_gates.yaml",
    ],
)
def test_search_configs_build_their_trainer(file, scenes, tmp_path):
    data = {"DATASETS.TRAIN": (scenes,), "DATASETS.TEST": (), "OUTPUT_DIR": str(tmp_path)}
    keys = {**data, "MODEL.META_ARCHITECTURE": SUPERNET, "SEARCH.ARCHITECTURE_FRACTION": 0.5}
    cfg = get_cfg(file, [item for pair in keys.items() for item in pair])
    prepare_config(cfg)
    assert len(SearchTrainer(cfg).architecture.space.edges) == 36


def test_the_parts_of_the_images_are_disjoint(scenes_cfg):
    trainer = SearchTrainer(scenes_cfg(SEARCH))
    (hook,) = [h for h in trainer._hooks if type(h).__name__ == "ArchitectureHook"]
    names = [
        {item["file_name"] for item in loader._images.dicts}
        for loader in (trainer.step_trainer.data_loader, hook.loader)
    ]
    assert names[0]
    assert names[1]
    assert not names[0] & names[1]


def test_the_split_is_another_one_than_that_of_the_data(scenes_cfg):
    """A data set may have given away the images of the same hash already."""
    names = [f"{i}.png" for i in range(400)]
    left = [name for name in names if not in_validation_split(name, 0.2, 0)]
    keep = split_filter(
        scenes_cfg({**SEARCH, "SEARCH.ARCHITECTURE_FRACTION": 0.2}), architecture=True
    )
    share = sum(keep({"file_name": f"/data/{name}"}) for name in left) / len(left)
    assert 0.14 < share < 0.26


@pytest.mark.parametrize("rule", ["argmax", "perturbation"])
def test_gates_cannot_be_compared_with_none(scenes_cfg, rule):
    keys = {**SEARCH, "SEARCH.RELAXATION": "sigmoid", "SEARCH.RULE": rule}
    with pytest.raises(ValueError, match=f"SEARCH.RULE: '{rule}' given, .*with SEARCH.RELAXATION"):
        SearchTrainer(scenes_cfg(keys))


def exact_gradient(model, architect, optimizer, train, held_out, loss_of):
    """Differentiate through a step of SGD without momentum buffers."""
    weights, rate = architect.weights, optimizer.param_groups[0]["lr"]
    loss = loss_of(model, train)
    gradients = torch.autograd.grad(
        loss, list(weights.values()), create_graph=True, materialize_grads=True
    )
    moved = {
        name: weight - rate * gradient
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }
    after = loss_of(lambda x: functional_call(model, moved, (x,)), held_out)
    found = torch.autograd.grad(after, list(architect.architecture.values()))
    return torch.cat(found)


def test_the_virtual_step_is_the_one_that_the_weights_take(scenes_cfg, monkeypatch):
    foreseen, take = [], VirtualStep.take

    def keep(self, weights, gradients):
        foreseen.append(take(self, weights, gradients))
        return foreseen[-1]

    monkeypatch.setattr(VirtualStep, "take", keep)
    steps = {"SOLVER.MAX_ITER": 2, "SEARCH.WARMUP": 0.0}
    trainer = search(scenes_cfg({**SEARCH, **VARIANTS["second order"], **steps}))
    assert len(foreseen) == 2
    taken = dict(trainer.supernet.named_parameters())
    for name, weight in foreseen[-1].items():
        torch.testing.assert_close(taken[name], weight, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_second_order_of_the_whole_model_without_masks(tiny_cfg, make_input, seed):
    """ROIAlign has no double backward, so the mask loss is left out."""
    torch.manual_seed(seed)
    changes = {
        "MODEL.META_ARCHITECTURE": SUPERNET,
        "SEARCH.SPACE.OPERATIONS": ["identity", "conv_3x3"],
    }
    model = build_model(tiny_cfg(changes)).double()
    names = ("loss_cls", "loss_box", "loss_stuff")

    def loss_of(call, batch):
        losses = call(batch)
        return sum(losses[name] for name in names)

    def batch(number):
        image = make_input(64, 64, seed=number)
        return [{**image, "image": image["image"].double()}]

    architect = Architect(model, architecture_parameters(model), loss_of)
    optimizer = torch.optim.SGD(architect.weights.values(), 0.01)
    train, held_out = batch(seed), batch(seed + 10)
    with EventStorage():
        step = VirtualStep.of(optimizer, architect.weights)
        _, given = architect.second_order(train, held_out, step)
        _, first = architect.first_order(held_out)
        exact = exact_gradient(model, architect, optimizer, train, held_out, loss_of)
    error = (torch.cat(list(given.values())) - exact).norm() / exact.norm()
    assert error < 1e-5
    assert (torch.cat(list(first.values())) - exact).norm() / exact.norm() > 10 * error


@pytest.mark.parametrize("name", ["loss_mask", "loss_stuff"])
def test_second_order_converges_in_the_step(tiny_cfg, make_input, name):
    """Of masks there is no exact gradient to compare with: shorter steps have to agree."""
    torch.manual_seed(0)
    changes = {
        "MODEL.META_ARCHITECTURE": SUPERNET,
        "SEARCH.SPACE.OPERATIONS": ["identity", "conv_3x3"],
    }
    model = build_model(tiny_cfg(changes)).double()
    train, held_out = (
        FixedProposalBatch([{**item, "image": item["image"].double()}])
        for item in (make_input(64, 64, seed=0), make_input(64, 64, seed=10))
    )
    architect = Architect(
        model, architecture_parameters(model), lambda call, data: call(data)[name]
    )
    optimizer = torch.optim.SGD(architect.weights.values(), 0.01)
    found = []
    with EventStorage():
        step = VirtualStep.of(optimizer, architect.weights)
        for scale in (1e-1, 1e-3, 1e-7, 1e-8):
            _, gradient = architect.second_order(train, held_out, step, scale=scale)
            found.append(torch.cat(list(gradient.values())))
        first = torch.cat(list(architect.first_order(held_out)[1].values()))
    errors = [((value - found[-1]).norm() / found[-1].norm()).item() for value in found]
    assert errors[2] < 1e-5
    assert errors[0] > 1e-3, "the length of the step makes no difference here"
    assert (first - found[-1]).norm() / found[-1].norm() > 1e-3


def test_fixed_proposals_are_those_of_the_first_pass(tiny_cfg, make_input, monkeypatch):
    model = build_model(tiny_cfg({"MODEL.META_ARCHITECTURE": SUPERNET}))
    batch, other = [make_input(64, 64)], FixedProposalBatch([make_input(64, 64, seed=1)])
    fixed = FixedProposalBatch(batch)
    calls = []
    propose = model.propose
    monkeypatch.setattr(model, "propose", lambda *args: calls.append(1) or propose(*args))
    with EventStorage():
        for item in (fixed, other, fixed):
            model(item)
        assert len(calls) == 2
        for _ in range(2):
            model(batch)
    assert len(calls) == 4
