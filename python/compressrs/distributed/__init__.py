"""Training on many machines: optimizers that are divided among ranks, with the same results.

Ranks are processes of MPI, by mpi4py (``pip install 'compressrs[mpi]'``), or, for tests, threads.
"""

from compressrs.distributed import federated
from compressrs.distributed.averaging import ExactMean, GradientMean
from compressrs.distributed.checkpoint import read_state
from compressrs.distributed.communicator import Communicator, RankError
from compressrs.distributed.compressed_means import PowerSGD, RoundedMean, TopKMean
from compressrs.distributed.diloco import DiLoCo
from compressrs.distributed.distilling import DataParallelDistiller, write_teacher
from compressrs.distributed.executors import executor
from compressrs.distributed.local import LocalCommunicator, run_local
from compressrs.distributed.mpi import as_communicator
from compressrs.distributed.sharded import ShardedOptimizer

__all__ = [
    "Communicator",
    "DataParallelDistiller",
    "DiLoCo",
    "ExactMean",
    "GradientMean",
    "LocalCommunicator",
    "PowerSGD",
    "RankError",
    "RoundedMean",
    "ShardedOptimizer",
    "TopKMean",
    "as_communicator",
    "executor",
    "federated",
    "read_state",
    "run_local",
    "write_teacher",
]
