"""The registry of sparse formats."""

from __future__ import annotations

from compressrs.sparse.bsr import BSRMatrix
from compressrs.sparse.csr import CSRMatrix
from compressrs.sparse.nm import NMMatrix

#: Classes of matrices by their `format`; files of models and of matrices refer to these.
FORMATS: dict[str, type[CSRMatrix] | type[BSRMatrix] | type[NMMatrix]] = {
    cls.format: cls for cls in (CSRMatrix, BSRMatrix, NMMatrix)
}
