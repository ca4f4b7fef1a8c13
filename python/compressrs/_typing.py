"""Types for annotations that not every Python or every installation has."""

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
    # For typing.get_type_hints, without importing what may not be installed.
    Figure = ScipyBSR = ScipyBSRArray = ScipyCSR = ScipyCSRArray = Any
    if sys.version_info >= (3, 11):
        from typing import Unpack
    else:

        class Unpack:
            """As of Python 3.11, where type hints are looked up."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item


__all__ = ["Figure", "ScipyBSR", "ScipyBSRArray", "ScipyCSR", "ScipyCSRArray", "Unpack"]
