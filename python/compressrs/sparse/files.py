"""Files in the format of `scipy.sparse.save_npz`."""

from __future__ import annotations

import errno
import io
import os

import numpy as np

from compressrs._checks import file_path, flag
from compressrs._files import write_atomically
from compressrs.sparse.bsr import BSRMatrix
from compressrs.sparse.csr import CSRMatrix

#: The formats that SciPy has too.
_FORMATS: dict[str, type[CSRMatrix] | type[BSRMatrix]] = {"csr": CSRMatrix, "bsr": BSRMatrix}


def save_npz(
    file: str | os.PathLike[str], matrix: CSRMatrix | BSRMatrix, *, compressed: bool = True
) -> None:
    """Save a matrix in the format of `scipy.sparse.save_npz`.

    The file is replaced atomically. int16 indices are written as such; SciPy widens them
    when it loads the file.

    Parameters
    ----------
    file : path
        ``.npz`` is appended unless the name already ends with it, as in SciPy.
    matrix : CSRMatrix or BSRMatrix
    compressed : bool, default True

    Raises
    ------
    TypeError
        If `matrix` is of another type.
    ValueError
        If its arrays have been changed so that they describe no matrix of its shape.
    OSError
        If the file cannot be written; an existing file is then unchanged.

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
    path = file_path(file, "file")
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    data, indices, indptr = matrix._checked_parts()
    buffer = io.BytesIO()
    save = np.savez_compressed if flag(compressed, "compressed") else np.savez
    save(
        buffer,
        indices=indices,
        indptr=indptr,
        format=np.array(matrix.format.encode()),
        shape=np.array(matrix.shape),
        data=data,
    )
    write_atomically(path, buffer.getvalue())


def load_npz(file: str | os.PathLike[str]) -> CSRMatrix | BSRMatrix:
    """Load a CSR or BSR matrix that `save_npz`, or SciPy's, wrote.

    Its pattern is immutable and checked once.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is corrupt, or does not hold a CSR or BSR matrix.
    """
    try:
        # Opened here, since NumPy does not close a corrupt file.
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            form = arrays["format"].item()
            parts = arrays["data"], arrays["indices"], arrays["indptr"]
            shape = tuple(arrays["shape"].tolist())
    except OSError as error:
        # Offsets in a corrupt archive may lead before its start.
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{os.fspath(file)} is not a sparse matrix: {error}") from None
    except Exception as error:  # a corrupt archive can raise almost anything
        raise ValueError(f"{os.fspath(file)} is not a sparse matrix: {error}") from None
    form = form.decode("ascii", "replace") if isinstance(form, bytes) else str(form)
    if form not in _FORMATS:
        raise ValueError(f"{os.fspath(file)} must hold a csr or bsr matrix, got {form!r}")
    try:
        return _FORMATS[form](parts, shape).copy()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(file)} is not a sparse matrix: {error}") from None
