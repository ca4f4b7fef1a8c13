"""What ``compressrs doctor`` looks at: packages, messages, bits, speed.

Each module returns plain values; `compressrs.cli.doctor` prints them.
"""

from compressrs.doctor.bits import Digests, check, digests
from compressrs.doctor.extras import Package, packages, tried
from compressrs.doctor.messages import Mpi, mpi
from compressrs.doctor.peaks import Peaks, peaks
from compressrs.doctor.speed import Kernel, kernels

__all__ = [
    "Digests",
    "Kernel",
    "Mpi",
    "Package",
    "Peaks",
    "check",
    "digests",
    "kernels",
    "mpi",
    "packages",
    "peaks",
    "tried",
]
