"""Lottery tickets and layer sensitivity."""

import numpy as np
import pytest

import compressrs as cr
from tests.reference import prune as reference


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_tickets_go_back_to_where_they_began(with_optimizer):
    rng = np.random.default_rng(0)
    w, bias = rng.standard_normal((5, 4)), np.zeros(5)
    opt = cr.optim.Adam([w, bias])
    opt.step([w + 1, bias + 1])
    start = w.copy(), bias.copy(), opt.state[0]["exp_avg"].copy()
    ticket = cr.prune.LotteryTicket([w, bias], opt if with_optimizer else None)
    for _ in range(3):
        opt.step([w + 1, bias + 1])
    mask = cr.prune.magnitude_mask(w, sparsity=0.5)
    ticket.rewind([mask, None])
    np.testing.assert_array_equal(w, np.where(mask, start[0], 0))
    np.testing.assert_array_equal(bias, start[1])
    if with_optimizer:
        assert int(opt.state[0]["step"]) == 1
        np.testing.assert_array_equal(opt.state[0]["exp_avg"], np.where(mask, start[2], 0))
        opt.step([w + 1, bias + 1])
        assert (w[~mask] == 0).all()
    ticket.rewind()
    np.testing.assert_array_equal(bias, start[1])


def test_bad_tickets():
    w = np.ones((2, 2))
    ticket = cr.prune.LotteryTicket(w)
    w[...] = 2
    with pytest.raises(ValueError, match="masks must be 1, one for each"):
        ticket.rewind([None, None])
    with pytest.raises(TypeError, match="masks must hold a boolean array"):
        ticket.rewind(w)
    with pytest.raises(ValueError, match=r"must hold an array of shape \(2, 2\)"):
        ticket.rewind(np.ones(4, bool))
    with pytest.raises(ValueError, match="must be a parameter of the optimizer"):
        cr.prune.LotteryTicket(w, cr.optim.SGD(np.ones(3), lr=0.1))
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        cr.prune.LotteryTicket(w, 3)
    assert (w == 2).all()


def test_sensitivity_prunes_each_layer_alone():
    rng = np.random.default_rng(0)
    weights = {"a": rng.standard_normal((20, 30)), "b": rng.standard_normal((10, 20))}
    before = {k: w.copy() for k, w in weights.items()}
    seen = []

    def evaluate():
        seen.append({k: 1 - np.count_nonzero(w) / w.size for k, w in weights.items()})
        return float(sum(np.abs(w).sum() for w in weights.values()))

    scan = cr.prune.sensitivity(weights, evaluate, [0.0, 0.5, 0.9])
    assert scan.names == ["a", "b"]
    assert [round(s["a"], 6) for s in seen] == [0, 0, 0.5, 0.9, 0, 0, 0]
    assert [round(s["b"], 6) for s in seen] == [0, 0, 0, 0, 0, 0.5, 0.9]
    for i, (name, w) in enumerate(before.items()):
        np.testing.assert_array_equal(weights[name], w)
        for j, s in enumerate((0.0, 0.5, 0.9)):
            lost = np.abs(w[~reference.mask(w, s)]).sum()
            assert scan.values[i, j] == pytest.approx(scan.baseline - lost)
    lines = scan.table().splitlines()
    assert lines[0] == "| Layer | 0 | 0.5 | 0.9 |"
    assert len(lines) == 4


def test_sensitivity_by_other_scores_and_its_plot(tmp_path):
    w = np.array([[1.0, 2.0, 3.0, 4.0]])
    score = cr.prune.Movement()
    score.update(w, np.array([[-5.0, 1.0, 1.0, 1.0]]))
    scan = cr.prune.sensitivity(w, lambda: float(w.sum()), [0.75], score)
    assert scan.values[0, 0] == 1
    scan.plot(tmp_path / "scan.svg")
    assert "<svg" in (tmp_path / "scan.svg").read_text()
    groups = cr.prune.Neurons(1)
    assert cr.prune.sensitivity(w, lambda: w.sum(), [0.5], granularity=groups).values[0, 0] == 7


def test_sensitivity_puts_weights_back_whatever_happens():
    w = np.arange(4.0)
    calls = iter([1.0, KeyboardInterrupt()])

    def evaluate():
        value = next(calls)
        if isinstance(value, BaseException):
            raise value
        return value

    with pytest.raises(KeyboardInterrupt):
        cr.prune.sensitivity(w, evaluate, [0.5])
    np.testing.assert_array_equal(w, np.arange(4.0))
    with pytest.raises(ValueError, match="sparsities must be in"):
        cr.prune.sensitivity(w, lambda: 0.0, [1.0])
    with pytest.raises(TypeError, match="evaluate must return a number, got 'x'"):
        cr.prune.sensitivity(w, lambda: "x")
    with pytest.raises(TypeError, match="sparsities must be a sequence"):
        cr.prune.sensitivity(w, lambda: 0.0, 0.5)
    with pytest.raises(TypeError, match="evaluate must be callable"):
        cr.prune.sensitivity(w, 3)
    w.flags.writeable = False
    with pytest.raises(ValueError, match="must be writable"):
        cr.prune.sensitivity(w, lambda: 0.0)
