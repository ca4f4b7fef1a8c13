"""What goes wrong on one rank is raised on all, and changes nothing on any."""

import copy
import os
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest

import compressrs as cr
from compressrs.distributed import LocalCommunicator, RankError, ShardedOptimizer, run_local

from .runs import same

SIZE = 3


def outcomes(work, size=SIZE):
    """Return what each rank raised, or its result; all ranks come to an end."""

    def caught(comm):
        try:
            return work(comm)
        except Exception as error:
            return error

    return run_local(caught, size)


DISAGREEMENTS = {
    "shape": lambda rank: {"params": np.ones(4 + (rank == 2))},
    "dtype": lambda rank: {"params": np.ones(4, np.float32 if rank == 2 else np.float64)},
    "values": lambda rank: {"params": np.full(4, 1.0 + (rank == 2))},
    "lr": lambda rank: {"lr": 0.1 * (1 + (rank == 2))},
    "seed": lambda rank: {"seed": int(rank == 2)},
    "rule": lambda rank: {"rule": cr.optim.AdamW if rank == 2 else cr.optim.Adam},
    "stage": lambda rank: {"stage": 1 + (rank == 2)},
    "micro-batches": lambda rank: {"microbatches": 3 + (rank == 2)},
    "params": lambda rank: {"params": {"b" if rank == 2 else "a": np.ones(4)}},
}


@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_ranks_that_disagree(what):
    def work(comm):
        arguments = {"rule": cr.optim.Adam, "params": np.ones(4)}
        arguments |= DISAGREEMENTS[what](comm.rank)
        return ShardedOptimizer(comm=comm, **arguments)

    for error in outcomes(work):
        assert isinstance(error, ValueError)
        assert "rank 2" in str(error)
        assert what in str(error)


def test_a_rank_that_cannot_construct():
    def work(comm):
        return ShardedOptimizer(cr.optim.Adam, np.ones(3, int if comm.rank == 1 else float), comm)

    first, second, third = outcomes(work)
    assert isinstance(second, TypeError)
    for error in (first, third):
        assert isinstance(error, RankError)
        assert error.rank == 1
        assert "params" in str(error)


def train(comm, w, **kwargs):
    opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=6, **kwargs)
    for i in opt.indices:
        opt.accumulate(i, np.full(w.shape, 1.0 + i))
    opt.step()
    return opt


FAULTS = {
    "shape": (lambda opt: opt.accumulate(opt.indices[0], np.ones(3)), ValueError),
    "dtype": (lambda opt: opt.accumulate(opt.indices[0], np.ones(70_000, int)), TypeError),
    "index": (lambda opt: opt.accumulate(99, np.ones(70_000)), ValueError),
    "missing": (lambda opt: opt._sums.done.clear(), ValueError),
    "lr": (lambda opt: opt.param_groups[0].update(lr=-1.0), ValueError),
}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_rank_that_fails_in_a_step(kind, stage):
    fault, kind_of_error = FAULTS[kind]

    def work(comm):
        w = np.ones(70_000)
        opt = train(comm, w, stage=stage)
        before, state = w.copy(), opt.state_dict()
        rate = opt.param_groups[0]["lr"]
        try:
            if comm.rank == 1 and stage == 2 and kind in ("shape", "dtype", "index"):
                fault(opt)  # while the others are at their first micro-batch
            for i in opt.indices:
                if comm.rank != 1 or stage == 2 or i != opt.indices[0]:
                    opt.accumulate(i, np.ones_like(w))
            if comm.rank == 1:
                if stage == 1 and kind in ("missing", "lr"):
                    opt.accumulate(opt.indices[0], np.ones_like(w))
                fault(opt)
            opt.step()
            error = None
        except Exception as caught:
            error = caught
        opt.param_groups[0]["lr"] = rate
        assert same(w, before)
        after = opt.state_dict()
        assert same(after["state"], state["state"])
        # The next step is like any other.
        for i in opt.indices:
            opt.accumulate(i, np.ones_like(w))
        opt.step()
        return error, w

    results = run_local(work, SIZE)
    for rank, (error, w) in enumerate(results):
        assert isinstance(error, kind_of_error if rank == 1 else RankError), error
        if rank != 1:
            assert error.rank == 1
        assert same(w, results[0][1])
    assert (results[0][1] != 1).all()


def test_hyperparameters_that_drift_apart():
    def work(comm):
        w = np.ones(5)
        opt = train(comm, w)
        before = w.copy()
        opt.param_groups[0]["lr"] = 0.1 if comm.rank == 2 else 0.2
        for i in opt.indices:
            opt.accumulate(i, np.ones_like(w))
        try:
            opt.step()
        except ValueError as error:
            assert same(w, before)
            return str(error)
        raise AssertionError

    for message in run_local(work, SIZE):
        assert "lr of param_groups[0]" in message
        assert "rank 2" in message


@pytest.mark.parametrize("how", ["another", "none", "state_dict"])
def test_masks_that_differ(how):
    def work(comm):
        params = {"a": np.ones(70_000, np.float32), "b": np.ones(9)}
        opt = ShardedOptimizer(cr.optim.Adam, params, comm, microbatches=SIZE)
        masks = {"a": np.arange(70_000) % 2 == 0, "b": None}
        opt.set_masks(masks)
        before, state = {k: v.copy() for k, v in params.items()}, opt.state_dict()
        assert before["a"].sum() == 35_000
        other = masks["a"].copy()
        other[69_999 if comm.rank == 2 else 0] ^= True
        if how == "none" and comm.rank == 2:
            other = None
        with pytest.raises(ValueError, match=r"mask of params\['a'\].* on rank 2 and") as error:
            if how == "state_dict":
                opt.load_state_dict({**state, "masks": {0: other}})
            else:
                opt.set_masks({**masks, "a": other})
        assert ("got none on rank 2" in str(error.value)) == (how == "none")
        assert same(params, before)
        assert same(opt.state_dict(), state)
        for i in opt.indices:
            opt.accumulate(i, {k: np.ones_like(v) for k, v in params.items()})
        opt.step()
        return params

    results = run_local(work, SIZE)
    for params in results:
        assert same(params, results[0])
        assert (params["a"][1::2] == 0).all()


def test_a_rank_that_fails_while_others_set_masks():
    def work(comm):
        opt = ShardedOptimizer(cr.optim.Adam, np.ones(4), comm)
        with comm.together("masking"):
            if comm.rank == 1:
                raise KeyError("a bug of the user's")
            opt.set_masks(np.arange(4) > 1)

    first, second, third = outcomes(work)
    assert isinstance(second, KeyError)
    assert isinstance(first, RankError)
    assert isinstance(third, RankError)


def test_arguments_of_steps_that_differ():
    def work(comm):
        w = np.ones(5)
        opt = train(comm, w)
        for i in opt.indices:
            opt.accumulate(i, np.ones_like(w))
        opt.step(max_grad_norm=1.0 if comm.rank else None)

    assert all("arguments of step" in str(error) for error in outcomes(work))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_on_one_rank(bad):
    def work(comm):
        w = {"a": np.ones(40_000, np.float32), "b": np.ones(70_000, np.float32)}
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=3)
        before = {name: array.copy() for name, array in w.items()}

        def accumulate():
            for i in opt.indices:
                grads = {name: np.ones_like(array) for name, array in w.items()}
                if i == 1:
                    grads["b"][60_000] = bad
                opt.accumulate(i, grads)

        accumulate()
        with pytest.raises(cr.optim.NonFiniteGradientError, match=r"grads\['b'\]"):
            opt.step(nonfinite="raise")
        accumulate()
        norm = opt.step(nonfinite="skip")
        assert not np.isfinite(norm)
        assert same(w, before)
        assert all(state["step"] == 0 for state in opt.state.values())
        accumulate()
        opt.step()
        return w

    first, *others = run_local(work, SIZE)
    assert np.isnan(first["b"]).sum() == 1
    assert np.isfinite(first["a"]).all()
    for other in others:
        np.testing.assert_array_equal(other["b"], first["b"])


def test_clipping_by_a_norm_of_nan_is_that_of_the_rule():
    gradient = np.array([1.0, np.nan])
    expected = np.ones(2)
    cr.optim.SGD(expected, lr=0.1).step(gradient, max_grad_norm=1.0)
    own = np.ones(2)
    ShardedOptimizer(cr.optim.SGD, own, lr=0.1).step(gradient, max_grad_norm=1.0)
    np.testing.assert_array_equal(own, expected)


def test_an_exception_of_the_user_reaches_all_ranks():
    def work(comm):
        w = np.ones(5)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, microbatches=3)
        with comm.together("training"):
            for i in opt.indices:
                if comm.rank == 1:
                    raise KeyError("a bug of the user's")
                opt.accumulate(i, np.ones_like(w))
            opt.step()
        return w

    first, second, third = outcomes(work)
    assert isinstance(second, KeyError)
    assert isinstance(first, RankError)
    assert isinstance(third, RankError)
    assert "a bug of the user's" in str(first)


@pytest.mark.parametrize("where", ["comm", "discard"])
@pytest.mark.parametrize("stage", [1, 2])
def test_training_goes_on_after_an_exception_of_the_user(where, stage):
    def work(comm):
        w, expected = np.ones(70_000), np.ones(70_000)
        opt, twin = train(comm, w, stage=stage), train(comm, expected)
        state = opt.state_dict()
        try:
            with opt.comm.together("training") if where == "comm" else nullcontext():
                for i in opt.indices:
                    opt.accumulate(i, np.full(w.shape, np.nan))
                    if where == "comm" and comm.rank == 1 and i == opt.indices[1]:
                        raise KeyError("a bug of the user's")
                if where == "discard":
                    raise KeyError
        except (KeyError, RankError):
            if where == "discard":
                opt.discard()
        assert same(opt.state_dict(), state)
        for one in (opt, twin):
            for i in one.indices:
                one.accumulate(i, np.full(w.shape, float(i)))
            one.step()
        assert same(w, expected)

    run_local(work, SIZE)


def test_a_failed_save_keeps_what_was_accumulated(tmp_path):
    def work(comm):
        w, expected = np.ones(9), np.ones(9)
        opt, twin = train(comm, w), train(comm, expected)
        for one in (opt, twin):
            for i in opt.indices:
                one.accumulate(i, np.full(w.shape, float(i)))
        (tmp_path / "file").touch()
        with pytest.raises((OSError, RankError)):
            opt.save(tmp_path / "file")
        opt.step()
        twin.step()
        assert same(w, expected)

    run_local(work, SIZE)


def test_copies_drop_what_they_accumulated():
    def work(comm):
        opt = train(comm, np.ones(9))
        copied = copy.deepcopy(opt)
        for i in copied.indices:
            copied.accumulate(i, np.ones(9))
        with pytest.raises((KeyError, RankError)), comm.together():
            raise KeyError
        assert not copied._sums.done

    run_local(work, 1)


def test_ranks_without_micro_batches_are_warned_of():
    def work(comm, microbatches):
        opt = ShardedOptimizer(cr.optim.Adam, np.ones(3), comm, microbatches=microbatches)
        for i in opt.indices:
            opt.accumulate(i, np.ones(3))
        opt.step()

    with pytest.warns(UserWarning, match="microbatches=1 is fewer than the 3 ranks") as caught:
        run_local(work, SIZE, 1)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    run_local(work, SIZE, 3)  # an error if it warns


def test_ranks_at_different_operations():
    def work(comm):
        w = np.ones(5)
        opt = train(comm, w)
        if comm.rank == 0:
            opt.state_dict()
        else:
            for i in opt.indices:
                opt.accumulate(i, np.ones_like(w))
            opt.step()

    for error in outcomes(work):
        assert isinstance(error, RankError)
        assert "all ranks must do the same" in str(error)


def test_a_state_that_one_rank_cannot_load():
    def work(comm):
        w = np.ones(40_000)
        opt = train(comm, w)
        state = opt.state_dict()
        before = {k: v.copy() for k, v in state["state"][0].items()}
        changed = {k: v + 1 for k, v in state["state"][0].items()}
        if comm.rank == 2:
            changed["exp_avg"] = np.ones(3)
        with pytest.raises(ValueError if comm.rank == 2 else RankError):
            opt.load_state_dict({**state, "state": {0: changed}})
        assert same(opt.state_dict()["state"][0], before)

    run_local(work, SIZE)


def test_arguments():
    with pytest.raises(TypeError, match="rule"):
        ShardedOptimizer("adam", np.ones(3))
    with pytest.raises(TypeError, match="rule"):
        ShardedOptimizer(cr.optim.Optimizer, np.ones(3))
    with pytest.raises(TypeError, match="comm"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3), 4)
    with pytest.raises(TypeError, match="typo"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3), typo=1)
    with pytest.raises(ValueError, match="microbatches"):
        ShardedOptimizer(cr.optim.Adam, np.ones(3), microbatches=0)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match="stage"):
            ShardedOptimizer(cr.optim.Adam, np.ones(3), stage=wrong)
    opt = ShardedOptimizer(cr.optim.Adam, np.ones(3), microbatches=2, stage=2)
    with pytest.raises(ValueError, match="index must be 0, the next one of stage 2, got 1"):
        opt.accumulate(1, np.ones(3))
    opt = ShardedOptimizer(cr.optim.Adam, np.ones(3))
    with pytest.raises(ValueError, match="max_grad_norm"):
        opt.step(np.ones(3), max_grad_norm=-1)
    with pytest.raises(TypeError, match="nonfinite"):
        opt.step(np.ones(3), nonfinite=3)
    with pytest.raises(ValueError, match="micro-batch 0"):
        opt.step()


def test_exchanges_are_checked():
    comm = LocalCommunicator()
    with pytest.raises(ValueError, match="send must hold 1 lists"):
        comm.exchange([], [[]])
    with pytest.raises(ValueError, match="receive must hold nothing for this rank"):
        comm.exchange([[]], [[np.ones(3)]])

    def work(comm):
        rows = np.ones((4, 4))[:, :2]
        comm.exchange([[rows], [rows]][comm.rank :] + [[]] * comm.rank, [[], []])

    assert any(
        "C-contiguous" in str(error) or "nothing" in str(error) for error in outcomes(work, 2)
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_no_rank():
    def work(comm):
        if comm.rank:
            return comm.allgather(0)
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                comm.allgather(1)
            except RuntimeError as error:
                os.write(writer, str(error).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            message = file.read().decode()
        return comm.allgather(message)

    assert "forked child" in run_local(work, 2)[0][0]


def test_rank_errors_pickle():
    import copy
    import pickle

    for error in (copy.copy(RankError("x", 3)), pickle.loads(pickle.dumps(RankError("x", 3)))):
        assert (str(error), error.rank) == ("x", 3)


def test_threads_of_ranks_end():
    before = threading.active_count()
    assert all(isinstance(e, ZeroDivisionError) for e in outcomes(lambda comm: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run_local(lambda comm: comm.allgather(1 / (1 - comm.rank)), 3)
    assert threading.active_count() == before


def test_a_rank_that_returns_while_others_wait():
    for returned in range(SIZE):
        with pytest.raises(RankError, match=f"rank {returned} has returned") as caught:
            run_local(
                lambda comm, rank: None if comm.rank == rank else comm.barrier(), SIZE, returned
            )
        assert caught.value.rank == returned


def test_waiting_for_a_rank_that_has_returned_again_and_again():
    def work(comm):
        for _ in range(4 * comm.rank):
            with pytest.raises(RankError, match="rank 0 has returned"):
                comm.barrier()

    run_local(work, 3)


def test_a_rank_that_returns_after_all_have_met():
    # Every rank but the last to come leaves while the others are still being woken up.
    for _ in range(200):
        assert run_local(lambda comm: sum(comm.allgather(1)), 8) == [8] * 8


def test_an_error_is_not_hidden_by_a_rank_that_has_returned():
    def work(comm):
        if comm.rank:
            with comm.together():
                raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        run_local(work, 2)


def test_a_communicator_after_its_ranks_have_ended():
    comm = run_local(lambda comm: comm, 2)[0]
    for call in (comm.barrier, lambda: comm.exchange([[], [np.ones(1)]], [[], [np.ones(1)]])):
        with pytest.raises(RuntimeError, match="run_local has ended"):
            call()
    with pytest.raises(RuntimeError, match="run_local has ended"):
        ShardedOptimizer(cr.optim.SGD, np.ones(3), comm)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("busy", ["comm.barrier() if comm.rank else time.sleep(1000)", "spin()"])
def test_an_interrupt_ends_ranks_and_their_process(busy):
    program = f"""
import time, signal, threading, os
import compressrs as cr
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
def spin():
    while True: sum(range(1000))
main = threading.main_thread().ident
def work(comm):
    if comm.rank == 0:
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    {busy}
try:
    cr.distributed.run_local(work, 2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert done.returncode == 0, done.stderr


COLLECTIVE = {
    "allgather": lambda comm: comm.allgather(1),
    "broadcast": lambda comm: comm.broadcast(1),
    "barrier": lambda comm: comm.barrier(),
    "exchange": lambda comm: comm.exchange([[], []], [[], []]),
    "agree": lambda comm: comm.agree("x"),
    "require_same": lambda comm: comm.require_same({"x": "y"}),
}


@pytest.mark.parametrize("name", COLLECTIVE)
def test_every_operation_hears_of_a_rank_that_fails(name):
    assert COLLECTIVE.keys() | {"together", "tell", "start_exchange", "drop_on_errors"} == {
        method for method in vars(cr.distributed.Communicator) if not method.startswith("_")
    }

    def work(comm):
        with pytest.raises(KeyError if comm.rank else RankError, match="here"), comm.together():
            if comm.rank:
                raise KeyError("here")
            COLLECTIVE[name](comm)
        others = [call for other, call in COLLECTIVE.items() if other != name]
        for other in others:
            with pytest.raises(RankError, match="all ranks must do the same"):
                (other if comm.rank else COLLECTIVE[name])(comm)
        if comm.rank:
            with pytest.raises(ValueError, match="send must hold 2 lists"):
                comm.exchange([], [])
        else:
            with pytest.raises(RankError, match="send must hold 2 lists"):
                COLLECTIVE[name](comm)
        COLLECTIVE[name](comm)

    run_local(work, 2)


GROUPS = {
    "not an array of floats": lambda rank: [np.ones(3, int if rank else float)],
    "other values": lambda rank: [np.full(3, float(rank))],
    "other shapes": lambda rank: [np.ones(3 + rank)],
    "other dtypes": lambda rank: [np.ones(3, np.float32 if rank else np.float64)],
}


@pytest.mark.parametrize("what", GROUPS)
def test_a_group_that_cannot_be_added_is_added_nowhere(what):
    def work(comm):
        w = np.ones(70_000)
        opt = train(comm, w)
        before = copy.deepcopy((w, opt.state_dict()))
        error = (TypeError if comm.rank else RankError) if "floats" in what else ValueError
        with pytest.raises(error):
            opt.add_param_group({"params": GROUPS[what](comm.rank)})
        assert len(opt.param_groups) == 1
        assert same(before, (w, opt.state_dict()))
        for i in opt.indices:
            opt.accumulate(i, np.ones(70_000))
        opt.step()
        more = np.ones(3)
        opt.add_param_group({"params": [more], "lr": 0.5})
        for i in opt.indices:
            opt.accumulate(i, [np.ones(70_000), [np.ones(3)]])
        opt.step()
        return w, more

    first, *others = run_local(work, 2)
    assert all(same(first, other) for other in others)
    assert (first[1] < 1).all()


def test_a_conversion_that_fails_on_one_rank_is_made_nowhere():
    def work(comm):
        w = np.ones(70_000, np.float32)
        opt = train(comm, w)
        before = copy.deepcopy(opt.state_dict())
        with pytest.raises(ValueError, match="state_dtype"):
            opt.convert_state("int8" if comm.rank else "bfloat16")
        assert same(before, opt.state_dict())
        with pytest.raises(ValueError if comm.rank else RankError, match="state_dtype"):
            opt.convert_state("int3" if comm.rank else "int8")
        assert same(before, opt.state_dict())
        opt.convert_state("int8")
        return opt.state_dict()

    first, *others = run_local(work, 2)
    assert all(same(first, other) for other in others)


def test_state_dicts_that_differ():
    def work(comm):
        w = np.ones(70_000)
        opt = train(comm, w)
        before = copy.deepcopy((w, opt.state_dict()))
        other = copy.deepcopy(before[1])
        other["state"][0]["exp_avg"][comm.rank * 3] += comm.rank
        with pytest.raises(ValueError, match="exp_avg of the state of params"):
            opt.load_state_dict(other)
        other = copy.deepcopy(before[1])
        other["param_groups"][0]["lr"] += comm.rank
        with pytest.raises(ValueError, match="hyperparameters of group 0"):
            opt.load_state_dict(other)
        assert same(before, (w, opt.state_dict()))
        opt.load_state_dict(before[1])

    run_local(work, 2)


@pytest.mark.parametrize("kind", ["folders", "files"])
def test_checkpoints_that_differ(kind, tmp_path):
    pytest.importorskip("safetensors")

    def work(comm):
        w = np.ones(70_000)
        opt = train(comm, w)
        if kind == "folders":
            opt.save(tmp_path / "0", weights=True)
        elif comm.rank == 0:
            for number in range(2):
                plain = cr.optim.Adam(v := np.ones(70_000))
                plain.step(v + number)
                plain.save(tmp_path / str(number))
        for i in opt.indices:
            opt.accumulate(i, w)
        opt.step()
        if kind == "folders":
            opt.save(tmp_path / "1", weights=True)
        comm.barrier()
        before = copy.deepcopy((w, opt.state_dict()))
        with pytest.raises(ValueError, match="all ranks must have the same"):
            opt.load(tmp_path / str(comm.rank))
        assert same(before, (w, opt.state_dict()))
        opt.load(tmp_path / "1")
        return w, opt.state_dict()

    first, second = run_local(work, 2)
    assert same(first, second)


@pytest.mark.parametrize("call", [1, 2, None])
def test_a_closure_that_fails_on_one_rank(call):
    def work(comm):
        w = np.arange(4.0)
        opt = cr.optim.SAM(ShardedOptimizer(cr.optim.SGD, w, comm, lr=0.1))
        calls = []

        def closure():
            calls.append(comm.rank)
            if comm.rank and len(calls) == call:
                raise ZeroDivisionError("here")
            return float(w @ w), 2 * w

        if call is not None:
            with pytest.raises(ZeroDivisionError if comm.rank else RankError, match="here"):
                opt.step(closure)
        assert (w == np.arange(4.0)).all()
        opt.step(closure)
        return w

    first, second = run_local(work, 2)
    assert same(first, second)
    assert (first[1:] < np.arange(1.0, 4.0)).all()


@pytest.mark.parametrize("what", ["diverges", "raises", "neither"])
def test_a_range_test_of_which_one_rank_fails(what):
    def work(comm):
        w = np.ones(4)
        opt = ShardedOptimizer(cr.optim.Adam, w, comm, lr=0.1)
        opt.step(np.ones(4))
        before = copy.deepcopy((w, opt.state_dict()))
        steps = []

        def trained():
            loss = float(w @ w) * (1 + comm.rank)
            steps.append(loss)
            if comm.rank and len(steps) == 5:
                if what == "raises":
                    raise ZeroDivisionError("here")
                loss = np.inf if what == "diverges" else loss
            opt.step(2 * w)
            return loss

        if what == "raises":
            with pytest.raises(ZeroDivisionError if comm.rank else RankError, match="here"):
                cr.optim.lr_range_test(opt, trained, steps=20)
            found = None
        else:
            found = cr.optim.lr_range_test(opt, trained, high=0.1, steps=20)
            assert len(found.rates) == (4 if what == "diverges" else 20)
        assert same(before, (w, opt.state_dict()))
        return found and found.losses

    first, second = run_local(work, 2)
    assert first == second
