"""Spaces of designs, against lists of all their designs."""

import copy
import math
import pickle

import numpy as np
import pytest

from compressrs.search import Choice, Float, Int, Space

CONDITIONAL = Space(
    {
        "depth": Int(1, 3),
        "width": Int(8, 16, step=4),
        "second": Choice(["a", "b"], when={"depth": (2, 3)}),
        "third": Int(1, 4, when={"depth": 3, "second": "a"}),
        "rate": Choice([0.5, None, True]),
    }
)


def listed(space):
    """All designs by nested loops, as a reference."""
    designs = [{}]
    for name, parameter in space.parameters.items():
        longer = []
        for design in designs:
            conditions = (parameter.when or {}).items()
            if all(design.get(key, object()) in values for key, values in conditions):
                longer += [{**design, name: value} for value in parameter._values()]
            else:
                longer.append(design)
        designs = longer
    return designs


def test_designs_are_those_of_nested_loops():
    wanted = listed(CONDITIONAL)
    assert list(CONDITIONAL.designs()) == wanted
    assert CONDITIONAL.size == len(wanted) == 72
    assert Space({"a": Float(0, 1), "b": Int(1, 2)}).size == math.inf
    assert Space({"a": Float(1, 1), "b": Int(1, 2**53)}).size == 2**53


def test_draws_and_mutations_are_designs():
    wanted, rng = listed(CONDITIONAL), np.random.default_rng(0)
    seen = set()
    for _ in range(1000):
        design = CONDITIONAL.sample(rng)
        assert design in wanted
        child = CONDITIONAL.mutate(design, rng)
        assert child in wanted and child != design
        both = [name for name in design if name in child]
        assert sum(design[name] != child[name] for name in both) <= 1
        seen |= {tuple(design.items()), tuple(child.items())}
    assert len(seen) == len(wanted)


@pytest.mark.parametrize("log", [False, True])
def test_every_number_of_a_range_is_drawn_and_reached_by_mutation(log):
    parameter, rng = Int(2, 6, log=log), np.random.default_rng(0)
    assert {parameter._sample(rng) for _ in range(200)} == {2, 3, 4, 5, 6}
    for value in range(2, 7):
        assert {parameter._mutate(value, rng) for _ in range(300)} == {2, 3, 4, 5, 6} - {value}


def test_logarithmic_draws_are_uniform_by_ratio():
    rng = np.random.default_rng(0)
    for parameter in (Float(1e-4, 1, log=True), Int(1, 10_000, log=True)):
        drawn = np.log([parameter._sample(rng) for _ in range(4000)])
        shares = np.histogram(drawn, 4, (np.log(parameter.low) - 0.7, np.log(parameter.high)))[0]
        assert shares.min() > 700


def test_numbers_that_leave_a_range_are_brought_back():
    rng = np.random.default_rng(1)
    for parameter in (Float(0, 1), Float(1e-300, 1e300, log=True), Float(-1e307, 1e307)):
        value = parameter.high
        for _ in range(200):
            value = parameter._mutate(value, rng)
            assert parameter.low <= value <= parameter.high
    assert Int(5, 5)._mutate(5, rng) == 5
    assert Choice(["a"])._mutate("a", rng) == "a"
    assert Int(1, 10, step=4).high == 9


def test_the_same_seed_gives_the_same_designs():
    drawn = [CONDITIONAL.sample(7), CONDITIONAL.sample(np.random.default_rng(7))]
    assert drawn[0] == drawn[1]
    mutated = [CONDITIONAL.mutate(drawn[0], rng=3) for _ in range(2)]
    assert mutated[0] == mutated[1]


def test_spaces_are_copied_and_pickled():
    for twin in (copy.deepcopy(CONDITIONAL), pickle.loads(pickle.dumps(CONDITIONAL))):
        assert twin == CONDITIONAL and repr(twin) == repr(CONDITIONAL)
    assert Space({"a": Int(1, 2)}) != Space({"a": Int(1, 3)})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Space({}), "parameters must hold at least one"),
        (lambda: Space([1]), "parameters must be a dict"),
        (lambda: Space({"a": 3}), r"parameters\['a'\] must be a Choice"),
        (lambda: Space({3: Int(1, 2)}), "names of parameters must be strings"),
        (lambda: Space({"a": Int(1, 2, when={"b": 1}), "b": Int(1, 2)}), "must come after 'b'"),
        (lambda: Space({"b": Int(1, 2), "a": Int(1, 2, when={"b": 3})}), "value of 'b' in when"),
        (lambda: Int(3, 2), "high must be at least low, 3, got 2"),
        (lambda: Int(0, 2, log=True), "low must be at least 1"),
        (lambda: Int(1, 9, 2, log=True), "step must be 1"),
        (lambda: Int(1.5, 2), "low must be an integer"),
        (lambda: Float(0, math.nan), "high must be a finite number"),
        (lambda: Float(0, 1, log=True), "low must be above 0"),
        (lambda: Float(-1e308, 1e308), "high must be at most low"),
        (lambda: Float(2, 1), "high must be at least low"),
        (lambda: Choice([]), "options must hold at least one"),
        (lambda: Choice("ab"), "options must be a sequence"),
        (lambda: Choice(["a", "a"]), "options must be different"),
        (lambda: Choice([[1]]), r"options\[0\] must be a str"),
        (lambda: Choice([math.nan]), r"options\[0\] must be a str"),
        (lambda: Choice([1], when=3), "when must be a dict"),
    ],
)
def test_what_is_no_space_is_refused(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ({"depth": 1}, "design must have a value of 'width'"),
        ({"depth": 1, "width": 9, "rate": None}, "must be 8 plus a multiple of 4"),
        ({"depth": 1, "width": 8, "rate": 2}, r"design\['rate'\] must be one of"),
        (
            {"depth": 1, "width": 8, "rate": None, "second": "a"},
            "must not have a value of 'second'",
        ),
        (3, "design must be a dict"),
    ],
)
def test_what_is_no_design_is_refused(design, said):
    with pytest.raises((TypeError, ValueError), match=said):
        CONDITIONAL.check(design)
    with pytest.raises((TypeError, ValueError), match=said):
        CONDITIONAL.mutate(design, 0)


def test_numbers_of_numpy_are_those_of_python():
    design = CONDITIONAL.check({"depth": np.int64(1), "width": np.int8(8), "rate": np.float64(0.5)})
    assert [type(value) for value in design.values()] == [int, int, float]
