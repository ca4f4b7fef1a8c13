"""Types for annotations that are not available in every Python version or installation."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import scipy.sparse
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

    ScipyBSR: TypeAlias = scipy.sparse.bsr_array | scipy.sparse.bsr_matrix
    ScipyBSRArray: TypeAlias = scipy.sparse.bsr_array
    ScipyCSR: TypeAlias = scipy.sparse.csr_array | scipy.sparse.csr_matrix
    ScipyCSRArray: TypeAlias = scipy.sparse.csr_array
else:
    # For typing.get_type_hints, without importing optional packages.
    Figure = ScipyBSR = ScipyBSRArray = ScipyCSR = ScipyCSRArray = Any
    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:

        class Unpack:
            """`typing.Unpack` of Python 3.11, as far as type hints need it."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item


__all__ = ["Figure", "ScipyBSR", "ScipyBSRArray", "ScipyCSR", "ScipyCSRArray", "Unpack"]
