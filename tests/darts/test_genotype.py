"""Genotypes as data: their JSON, their hash, and what is refused."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darts.genotype import PORTS, Flow, Genotype
from darts.operations import OPERATIONS

NODES = [f"{branch}.{i}" for branch in ("box", "stuff", "mask", "cls", "a-b.c") for i in (1, 4, 12)]
flow_strategy = st.builds(
    Flow,
    st.sampled_from(NODES),
    st.sampled_from(NODES),
    st.sampled_from(PORTS),
    st.sampled_from(OPERATIONS),
)
genotypes = st.builds(
    Genotype,
    name=st.text(min_size=1, max_size=20),
    flows=st.lists(flow_strategy, unique_by=lambda f: (f.source, f.target, f.port), max_size=8).map(
        tuple
    ),
    choices=st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=4),
    provenance=st.dictionaries(
        st.text(string.printable, max_size=10),
        st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.lists(st.integers()),
        max_size=4,
    ),
)

VALID = {
    "version": 1,
    "name": "one",
    "flows": [{"from": "box.1", "to": "cls.1", "port": "input", "operation": "conv_3x3"}],
    "choices": {"stuff.attention.merged": "none"},
    "provenance": {"seed": 3},
}


@given(genotypes)
def test_json_round_trip(genotype):
    again = Genotype.from_json(genotype.to_json())
    assert again == genotype
    assert again.hash == genotype.hash


def test_file_round_trip(tmp_path):
    path = tmp_path / "one.json"
    genotype = Genotype.from_json(json.dumps(VALID))
    genotype.save(path)
    assert Genotype.load(path) == genotype
    assert json.loads(path.read_text()) == VALID
    assert [p.name for p in tmp_path.iterdir()] == ["one.json"]


@given(genotypes, st.randoms(use_true_random=False))
def test_hash_ignores_order_name_and_provenance(genotype, random):
    flows, choices = list(genotype.flows), list(genotype.choices.items())
    random.shuffle(flows)
    random.shuffle(choices)
    other = Genotype(name="another", flows=tuple(flows), choices=dict(choices))
    assert other.hash == genotype.hash
    assert len(other.hash) == 12
    int(other.hash, 16)


@pytest.mark.parametrize(
    "changed",
    [
        {"flows": []},
        {"choices": {"stuff.attention.merged": "channel"}},
        *(
            {"flows": [{**VALID["flows"][0], key: value}]}
            for key, value in (
                ("from", "box.2"),
                ("to", "cls.2"),
                ("port", "gate"),
                ("operation", "conv_1x1"),
            )
        ),
    ],
)
def test_hash_tells_architectures_apart(changed):
    assert (
        Genotype.from_json(json.dumps({**VALID, **changed})).hash
        != Genotype.from_json(json.dumps(VALID)).hash
    )


def flow(**changes):
    return {"flows": [{**VALID["flows"][0], **changes}]}


BAD = {
    "version": ({"version": 2}, "2"),
    "name empty": ({"name": ""}, "name"),
    "name not text": ({"name": 3}, "name"),
    "unknown key": ({"edges": []}, "edges"),
    "flows not a list": ({"flows": {}}, "flows"),
    "flow not an object": ({"flows": ["box.1"]}, "box.1"),
    "flow twice": ({"flows": VALID["flows"] * 2}, "twice"),
    "flow twice, other operation": (
        {"flows": [VALID["flows"][0], flow(operation="identity")["flows"][0]]},
        "twice",
    ),
    "unknown flow key": (flow(weight=1), "weight"),
    "port": (flow(port="output"), "output"),
    "operation": (flow(operation="conv_5x5"), "conv_5x5"),
    "port not text": (flow(port=["input"]), "port"),
    "operation not text": (flow(operation=["identity"]), "operation"),
    "node without index": (flow(**{"from": "box"}), "'box'"),
    "node of index 0": (flow(to="cls.0"), "cls.0"),
    "node with a word for index": (flow(to="cls.one"), "cls.one"),
    "node not text": (flow(to=1), "1"),
    "choices not an object": ({"choices": []}, "choices"),
    "choice not text": ({"choices": {"a": 1}}, "1"),
    "provenance not an object": ({"provenance": "me"}, "provenance"),
}


@pytest.mark.parametrize(("changes", "problem"), BAD.values(), ids=BAD)
def test_bad_content_names_file_and_problem(tmp_path, changes, problem):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**VALID, **changes}))
    with pytest.raises(ValueError, match="bad.json") as error:
        Genotype.load(path)
    assert problem in str(error.value)


@pytest.mark.parametrize("key", ["version", "name", "flows"])
def test_missing_key(tmp_path, key):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({k: v for k, v in VALID.items() if k != key}))
    with pytest.raises(ValueError, match=f"bad.json.*{key}"):
        Genotype.load(path)


@pytest.mark.parametrize("key", ["from", "to", "port", "operation"])
def test_flow_without_a_key(tmp_path, key):
    path = tmp_path / "bad.json"
    incomplete = {k: v for k, v in VALID["flows"][0].items() if k != key}
    path.write_text(json.dumps({**VALID, "flows": [incomplete]}))
    with pytest.raises(ValueError, match=f"bad.json.*{key}"):
        Genotype.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'{"version": 1,}', b"\xff"])
def test_not_a_json_object(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="bad.json"):
        Genotype.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="absent.json"):
        Genotype.load(tmp_path / "absent.json")


def test_choices_and_provenance_may_be_absent():
    given_keys = {k: VALID[k] for k in ("version", "name", "flows")}
    genotype = Genotype.from_json(json.dumps(given_keys))
    assert genotype.choices == {}
    assert genotype.provenance == {}
