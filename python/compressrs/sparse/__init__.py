"""Sparse matrices with fast products, forward and backward.

`CSRMatrix` stores entries, `BSRMatrix` blocks of them, `NMMatrix` n of each m columns;
`sddmm` is the gradient of a product with respect to what is stored. Interfaces follow
`scipy.sparse`.

Results have the same bits for any number of threads and any instruction set.
"""

from compressrs.sparse.base import SparseMatrix, TransposedMatrix, sddmm
from compressrs.sparse.bsr import BSRMatrix
from compressrs.sparse.csr import CSRMatrix, carry
from compressrs.sparse.files import load_npz, save_npz
from compressrs.sparse.nm import NMMatrix

__all__ = [
    "BSRMatrix",
    "CSRMatrix",
    "NMMatrix",
    "SparseMatrix",
    "TransposedMatrix",
    "carry",
    "load_npz",
    "save_npz",
    "sddmm",
]
