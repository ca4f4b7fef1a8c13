"""Sparse matrices with fast products for the forward and the backward pass.

`CSRMatrix` stores single entries, `BSRMatrix` dense blocks, `NMMatrix` n of every m columns;
`sddmm` computes the gradient of a product with respect to the stored entries. The interface
follows `scipy.sparse`.

Results are bit-identical for any number of threads and any instruction set.
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
