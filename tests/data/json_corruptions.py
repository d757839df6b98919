"""Change a panoptic JSON; each change is a function (content, random)."""

import copy

VALUES = [None, True, False, 0, 1, -1, 3, 7.0, 0.5, 1e300, -1e-300, 2**24, 10**40, "", "x", "7"]
VALUES += ["../a.png", "/etc/hostname", "a\0b", "\ud800", "line\nbreak", [], {}, [1, 2], {"id": 1}]
VALUES += [[[[[[[[[0]]]]]]]], "x" * 5000]


def places(content):
    """Return all (container, key) pairs of a JSON by their path without list indices."""
    found = {}
    waiting = [("", content)]
    while waiting:
        shape, value = waiting.pop()
        keys = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in keys:
            name = f"{shape}.{key}" if isinstance(value, dict) else f"{shape}[]"
            found.setdefault(name, []).append((value, key))
            if isinstance(child, (dict, list)):
                waiting.append((name, child))
    return found


def _one_place(content, random, kinds=(dict, list)):
    found = places(content)
    by_shape = [[p for p in ps if isinstance(p[0], kinds)] for ps in found.values()]
    return random.choice(random.choice([ps for ps in by_shape if ps]))


def set_a_value(content, random):
    container, key = _one_place(content, random)
    other, other_key = _one_place(content, random)
    container[key] = copy.deepcopy(random.choice([*VALUES, other[other_key]]))


def change_a_little(content, random):
    found = [place for same in places(content).values() for place in same]
    container, key = random.choice([(c, k) for c, k in found if type(c[k]) is int])
    container[key] += random.choice([-1, 1])


def remove_a_value(content, random):
    container, key = _one_place(content, random)
    del container[key]


def repeat_an_entry(content, random):
    container, key = _one_place(content, random, (list,))
    container.insert(random.randrange(len(container) + 1), copy.deepcopy(container[key]))


def exchange_two_values(content, random):
    same = random.choice([ps for ps in places(content).values() if len(ps) > 1])
    (one, i), (other, j) = random.sample(same, 2)
    one[i], other[j] = other[j], one[i]


def use_an_unknown_category(content, random):
    annotation = random.choice(content["annotations"])
    random.choice(annotation["segments_info"])["category_id"] = random.choice([0, 1, 8, 999])


def put_nan(content, random):
    container, key = _one_place(content, random)
    container[key] = random.choice([float("nan"), float("inf"), -float("inf")])


JSON_CHANGES = (
    set_a_value,
    change_a_little,
    remove_a_value,
    repeat_an_entry,
    exchange_two_values,
    use_an_unknown_category,
    put_nan,
)
