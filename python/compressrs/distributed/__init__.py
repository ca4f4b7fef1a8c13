"""Training on many machines: optimizers that are divided among ranks, with the same results.

Ranks are processes of MPI, by mpi4py (``pip install 'compressrs[mpi]'``), or, for tests, threads.
"""

from compressrs.distributed.checkpoint import read_state
from compressrs.distributed.communicator import Communicator, RankError
from compressrs.distributed.local import LocalCommunicator, run_local
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.sharded import ShardedOptimizer

__all__ = [
    "Communicator",
    "LocalCommunicator",
    "RankError",
    "ShardedOptimizer",
    "as_communicator",
    "read_state",
    "run_local",
]
