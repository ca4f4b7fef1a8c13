"""Executors of other libraries by name: processes, MPI, Dask and Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from compressrs._checks import string, whole
from compressrs.distributed.mpi import require_mpi

#: What `executor` takes, besides the addresses of schedulers.
KINDS = ("processes", "mpi", "dask://HOST:PORT", "ray", "ray://HOST:PORT")

#: Those whose number of workers may be given.
MAY_COUNT = ("processes", "mpi")


class _Processes(Executor):
    """Processes that are started anew if one is killed."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.restart()

    def restart(self) -> None:
        # A new interpreter: nothing of this one's threads is in an undefined state there.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_one_thread)

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._pool.submit(call, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def _one_thread() -> None:
    from compressrs import set_num_threads

    set_num_threads(1)


class _Ray(Executor):
    """Tasks of Ray, which repeats those whose worker dies."""

    def __init__(self, ray: Any, address: str | None) -> None:
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            ray.init(address=address, log_to_driver=False)
        self.workers = int(ray.cluster_resources().get("CPU", 1))
        self._run = ray.remote(max_retries=3, retry_exceptions=False)(_call)

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._run.remote(call, args, kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if self._own:
            self._ray.shutdown()


class _Dask(Executor):
    """Tasks of Dask, which repeats those whose worker dies."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pool = client.get_executor(pure=False)
        self.workers = max(1, sum(client.nthreads().values()))

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._pool.submit(call, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._pool.shutdown(wait=wait)
        self._client.close()


def _call(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call(*args, **kwargs)


def executor(kind: str, workers: int | None = None) -> AbstractContextManager[Executor]:
    """Return a context with an executor, as those of `concurrent.futures`.

    For `checkpoint.compress(executor=)`.

    Parameters
    ----------
    kind : str
        - ``"processes"``: new processes on this machine, with one thread each;
        - ``"mpi"``: the ranks of ``mpiexec -n N python -m mpi4py.futures program.py``
          (extra `mpi`);
        - ``"dask://HOST:PORT"``: the workers of a scheduler of Dask (extra `dask`);
        - ``"ray"`` or ``"ray://HOST:PORT"``: Ray, on this machine or a cluster.
    workers : int, optional
        Number of processes; by default the number of CPUs. Only for "processes" and "mpi".

    Raises
    ------
    ModuleNotFoundError
        If the library is not installed.
    TypeError, ValueError
        If an argument is invalid.
    OSError
        If a scheduler cannot be reached.

    Examples
    --------
    >>> import compressrs as cr
    >>> with cr.distributed.executor("processes", 2) as pool:
    ...     pool.submit(divmod, 7, 2).result()
    (3, 1)
    """
    kind = string(kind, "kind")
    name, _, address = kind.partition("://")
    if kind not in (*MAY_COUNT, "ray") and not (name in ("dask", "ray") and address):
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if workers is not None:
        workers = whole(workers, "workers", 1, 1024)
        if kind not in MAY_COUNT:
            raise ValueError(f"workers are those of {name} and cannot be given, got {workers}")
    return _running(name, address, workers)


@contextmanager
def _running(name: str, address: str, workers: int | None) -> Iterator[Executor]:
    made = {"processes": _processes, "mpi": _mpi, "dask": _dask, "ray": _ray}[name](
        address, workers
    )
    try:
        yield made
    except BaseException:
        made.shutdown(wait=False, cancel_futures=True)
        raise
    made.shutdown()


def _processes(_: str, workers: int | None) -> Executor:
    return _Processes(workers or os.cpu_count() or 1)


def _mpi(_: str, workers: int | None) -> Executor:
    require_mpi()
    from mpi4py import MPI
    from mpi4py.futures import MPIPoolExecutor

    if MPI.COMM_WORLD.Get_size() < 2:
        # It would start processes of its own, which not every MPI can.
        raise ValueError(
            "kind 'mpi' needs at least two ranks; start with "
            "mpiexec -n N python -m mpi4py.futures -m compressrs ..."
        )
    pool: Any = MPIPoolExecutor(workers)
    pool.workers = pool.num_workers
    made: Executor = pool
    return made


def _dask(address: str, _: int | None) -> Executor:
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "kind 'dask://...' needs Dask: pip install 'compressrs[dask]'"
        ) from None
    return _Dask(Client(f"tcp://{address}", set_as_default=False))


def _ray(address: str, _: int | None) -> Executor:
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("kind 'ray' needs Ray: pip install ray") from None
    return _Ray(ray, f"ray://{address}" if address else None)
