"""Files in the layout of `scipy.sparse.save_npz`."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np

from compressrs._files import write_atomically
from compressrs.sparse.bsr import BSRMatrix
from compressrs.sparse.csr import CSRMatrix

_FORMATS: dict[str, type[CSRMatrix] | type[BSRMatrix]] = {"csr": CSRMatrix, "bsr": BSRMatrix}


def save_npz(
    file: str | os.PathLike[str], matrix: CSRMatrix | BSRMatrix, *, compressed: bool = True
) -> None:
    """Write a matrix to a file that `scipy.sparse.load_npz` reads as well.

    All of the file is written or nothing. int16 indices are written as such, which
    SciPy widens.

    Parameters
    ----------
    file : path
        ``.npz`` is appended if it has another ending, as SciPy does.
    matrix : CSRMatrix or BSRMatrix
    compressed : bool, default True

    Raises
    ------
    TypeError
        If `matrix` is not one.
    OSError
        If the file cannot be written; what was there before still is.

    Examples
    --------
    >>> import numpy as np, compressrs as cr, tempfile, pathlib
    >>> A = cr.sparse.CSRMatrix.from_dense(np.eye(3))
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npz"
    >>> cr.sparse.save_npz(path, A)
    >>> cr.sparse.load_npz(path)
    <CSRMatrix of shape (3, 3), float64, with 3 stored entries>
    """
    if not isinstance(matrix, (CSRMatrix, BSRMatrix)):
        got = type(matrix).__name__
        raise TypeError(f"matrix must be a CSRMatrix or BSRMatrix (see NMMatrix.to_csr), got {got}")
    path = Path(file)
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(
        buffer,
        indices=matrix.indices,
        indptr=matrix.indptr,
        format=np.array(matrix.format.encode()),
        shape=np.array(matrix.shape),
        data=matrix.data,
    )
    write_atomically(path, buffer.getvalue())


def load_npz(file: str | os.PathLike[str]) -> CSRMatrix | BSRMatrix:
    """Read a matrix that `save_npz`, or SciPy's in CSR or BSR form, wrote.

    Its pattern cannot be written to, so it is checked once.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, or holds something else.
    """
    try:
        # Opened here, since NumPy leaves a damaged file open.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            form = arrays["format"].item()
            parts = arrays["data"], arrays["indices"], arrays["indptr"]
            shape = tuple(arrays["shape"].tolist())
    except OSError:
        raise
    except Exception as error:  # of a damaged archive it may be almost any
        raise ValueError(f"{os.fspath(file)} is not a sparse matrix: {error}") from None
    form = form.decode("ascii", "replace") if isinstance(form, bytes) else str(form)
    if form not in _FORMATS:
        raise ValueError(f"{os.fspath(file)} must hold a csr or bsr matrix, got {form!r}")
    try:
        return _FORMATS[form](parts, shape).copy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(file)} is not a sparse matrix: {error}") from None
