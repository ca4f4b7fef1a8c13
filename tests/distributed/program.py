"""What test_mpi.py runs on each rank: ``mpiexec -n 3 python program.py TASK FOLDER``."""

import os
import signal
import sys
from pathlib import Path

import mpi4py
import numpy as np

if sys.argv[1] in ("single", "funneled"):
    mpi4py.rc.thread_level = sys.argv[1]

from mpi4py import MPI

import compressrs as cr
from compressrs.distributed import RankError, checkpoint, read_state
from compressrs.distributed.mpi import MPICommunicator
from tests.distributed.runs import parameters, plain, same, sharded

COMM = MPI.COMM_WORLD
CASES = [
    (cr.optim.AdamW, {"state_dtype": "int8"}),
    (cr.optim.Adam, {"stage": 2}),
    (cr.optim.Lamb, {}),
    (cr.optim.Muon, {}),
]


def train(folder: Path) -> None:
    """Compare with one process; a rank that fails; checkpoints."""
    cr.distributed.partition._PIECE = 1000  # several pieces are on their way at once
    for rule, kwargs in CASES:
        expected, params = parameters(rule), parameters(rule)
        step = {} if rule is cr.optim.Adam else {"max_grad_norm": 0.5}
        own = {name: value for name, value in kwargs.items() if name != "stage"}
        reference, norms = plain(rule, expected, step=step, **own)
        opt, own_norms = sharded(rule, params, COMM, step=step, **kwargs)
        assert same(params, expected)
        assert same(own_norms, norms)
        assert same(opt.state_dict(), reference.state_dict())
    opt.save(folder)
    assert same(read_state(folder), reference.state_dict())
    other, _ = sharded(rule, parameters(rule), COMM, steps=1)
    other.load(folder)
    assert same(other.state_dict(), reference.state_dict())

    # A rank that fails.
    opt, _ = sharded(cr.optim.Adam, params := parameters(cr.optim.Adam), COMM, steps=1)
    before = {name: array.copy() for name, array in params.items()}
    last = COMM.size - 1
    expected = ValueError if COMM.rank == last else RankError
    try:
        if COMM.rank == last:
            opt.accumulate(opt.indices[0], [])
        for i in opt.indices:
            opt.accumulate(i, params)
        opt.step()
    except (ValueError, RankError) as error:
        assert isinstance(error, expected)
    else:
        raise AssertionError("no error")
    assert same(params, before)

    # Messages that are longer than the limit, and types that MPI does not know.
    comm = MPICommunicator(COMM)
    cr.distributed.mpi._LIMIT = 1000
    sent = np.arange(5001, dtype=np.float16) + comm.rank
    received = [np.empty_like(sent) for _ in range(comm.size)]
    comm.exchange(
        [[sent] if r != comm.rank else [] for r in range(comm.size)],
        [[received[r]] if r != comm.rank else [] for r in range(comm.size)],
    )
    for r in range(comm.size):
        if r != comm.rank:
            assert same(received[r], np.arange(5001, dtype=np.float16) + np.float16(r))
    # Besides, ranks say what they are about to do.
    assert 0 <= comm.bytes - sent.nbytes * (comm.size - 1) < 1000

    # A forked child has no ranks to talk to.
    if comm.size > 1:
        child = os.fork()
        if child == 0:
            try:
                comm.barrier()
            except RuntimeError as error:
                os._exit(0 if "forked child" in str(error) else 1)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    comm.barrier()


def kill(folder: Path) -> None:
    """The last rank dies while it writes a second checkpoint."""
    params = parameters(cr.optim.Adam)
    opt, _ = sharded(cr.optim.Adam, params, COMM, steps=2)
    opt.save(folder)
    if COMM.rank == COMM.size - 1:
        checkpoint.save_tensors = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    opt.save(folder)


def disagree(folder: Path) -> None:
    """What ranks disagree on, or fail in, is raised on all, and they go on with the same."""
    rank, last = COMM.rank, COMM.size - 1
    d, g = cr.distributed, np.arange(1.0, 1001.0).reshape(50, 20) * (rank + 1)
    for make in (
        lambda: d.ExactMean(COMM) if rank else d.RoundedMean(COMM),
        lambda: d.RoundedMean(COMM, "int8" if rank else "bfloat16"),
        lambda: d.TopKMean(COMM, 0.1 * (1 + rank)),
        lambda: d.PowerSGD(COMM, 1 + rank),
    ):
        raises(ValueError, lambda make=make: make().mean(g))

    w = np.zeros(3)
    local = d.DiLoCo(cr.optim.SGD(w, lr=0.1), COMM, every=2)
    local.step(np.ones(3))
    failure = ValueError if rank == last else RankError
    raises(failure, lambda: local.step(np.ones(4 if rank == last else 3)))
    for _ in range(3):
        local.step(np.full(3, 1.0 + rank))
    assert local.step_count == 4
    assert all(same(w, other) for other in COMM.allgather(w))

    opt = cr.distributed.ShardedOptimizer(cr.optim.Adam, w, COMM)
    failure = TypeError if rank == last else RankError
    bad = np.ones(3, int if rank == last else float)
    raises(failure, lambda: opt.add_param_group({"params": [bad]}))
    raises(ValueError, lambda: opt.add_param_group({"params": [np.full(3, float(rank))]}))
    sam = cr.optim.SAM(opt)

    def closure() -> tuple[float, np.ndarray]:
        if rank == last:
            raise ZeroDivisionError
        return 0.0, np.ones(3)

    raises(ZeroDivisionError if rank == last else RankError, lambda: sam.step(closure))
    opt.step(np.ones(3))
    for number in range(2):
        opt.save(folder / str(number))
    raises(ValueError, lambda: opt.load(folder / str(int(rank == last))))
    opt.load(folder / "1")
    opt.step(np.ones(3))
    assert all(same(w, other) for other in COMM.allgather(w))


def raises(kind: type[Exception], call) -> None:
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


def large(folder: Path) -> None:
    """A message of more bytes than fit into 31 bits, in the messages that are sent in truth."""
    comm = MPICommunicator(COMM)
    length = 2**31 + 5
    if comm.rank == 0:
        sent = np.zeros(length, np.uint8)  # which takes no memory until it is written to
        sent[[0, 2**30, 2**31 - 1, 2**31, -1]] = [1, 2, 3, 4, 5]
        comm.exchange([[], [sent]], [[], []])
    else:
        received = np.full(length, 9, np.uint8)
        comm.exchange([[], []], [[received], []])
        assert received[[0, 2**30, 2**31 - 1, 2**31, -1]].tolist() == [1, 2, 3, 4, 5]
        assert np.count_nonzero(received) == 5
    assert 0 <= comm.bytes - (length if comm.rank == 0 else 0) < 1000


def single(folder: Path) -> None:
    """An MPI that was initialized for one thread."""
    assert MPI.Query_thread() == MPI.THREAD_SINGLE
    cr.set_num_threads(2)
    try:
        MPICommunicator(COMM)
    except RuntimeError as error:
        assert "threads" in str(error)
    else:
        raise AssertionError("no error")
    cr.set_num_threads(1)
    MPICommunicator(COMM).barrier()


def funneled(folder: Path) -> None:
    """An MPI that only the main thread may call."""
    import threading

    comm = MPICommunicator(COMM)
    errors = []

    def call() -> None:
        try:
            comm.barrier()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in errors[0]
    comm.barrier()


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
    print(f"rank {COMM.rank} of {COMM.size}: ok")
