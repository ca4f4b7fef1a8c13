"""Files in the format of `scipy.sparse.save_npz`."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from compressrs._arrays import Array, bfloat16, is_half
from compressrs._checks import file_path, flag
from compressrs._files import write_atomically
from compressrs._paths import open_regular
from compressrs.sparse.bsr import BSRMatrix
from compressrs.sparse.csr import CSRMatrix

#: The formats that SciPy has too.
_FORMATS: dict[str, type[CSRMatrix] | type[BSRMatrix]] = {"csr": CSRMatrix, "bsr": BSRMatrix}

#: What is added to the name of a format whose values are bfloat16, which NumPy's files do not
#: know: so SciPy refuses the file rather than taking the bits for integers.
_BFLOAT16 = "_bfloat16"


def save_npz(
    file: str | os.PathLike[str], matrix: CSRMatrix | BSRMatrix, *, compressed: bool = True
) -> None:
    """Save a matrix in the format of `scipy.sparse.save_npz`.

    The file is replaced atomically. int16 indices are written as such; SciPy widens them
    when it loads the file. SciPy does not load bfloat16.

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
    data, indices, indptr = matrix._checked_parts()
    name = matrix.format
    if is_half(data.dtype) and data.dtype != np.float16:
        name, data = name + _BFLOAT16, data.view(np.uint16)
    parts = {"indices": indices, "indptr": indptr, "shape": np.array(matrix.shape), "data": data}
    write_npz(file_path(file, "file"), name, parts, flag(compressed, "compressed"))


def write_npz(path: Path, name: str, parts: dict[str, Array], compressed: bool) -> None:
    """Write arrays and the name of a format, atomically."""
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    buffer = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(buffer, format=np.array(name.encode()), **parts)
    write_atomically(path, buffer.getvalue())


def read_npz(
    path: Path, formats: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, tuple[int, ...], list[Array]]:
    """Return the name of the format, the shape and the arrays of these names.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is corrupt, of another format, or has no such arrays.
    """
    # Opened here, since NumPy does not close a corrupt file.
    with open_regular(path) as stream:
        form, shape, parts = _members(path, stream, formats, names)
    if form not in formats:
        names = tuple(name for name in formats if not name.endswith(_BFLOAT16))
        raise ValueError(f"{path} must hold a {' or '.join(names)} matrix, got {form!r}")
    return form, shape, parts


def _members(
    path: Path, stream: BinaryIO, formats: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, tuple[int, ...], list[Array]]:
    """Return what `read_npz` does, but neither shape nor arrays if the format is another."""
    try:
        with np.load(stream, allow_pickle=False) as arrays:
            form = arrays["format"].item()
            form = form.decode("ascii", "replace") if isinstance(form, bytes) else str(form)
            if form not in formats:
                return form, (), []
            return form, tuple(arrays["shape"].tolist()), [arrays[name] for name in names]
    except OSError as error:
        # Offsets in a corrupt archive may lead before its start.
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path} is not a sparse matrix: {error}") from None
    except Exception as error:  # a corrupt archive can raise almost anything
        raise ValueError(f"{path} is not a sparse matrix: {error}") from None


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
    path = file_path(file, "file")
    formats = *_FORMATS, *(name + _BFLOAT16 for name in _FORMATS)
    form, shape, (data, indices, indptr) = read_npz(path, formats, ("data", "indices", "indptr"))
    half = form.endswith(_BFLOAT16)
    dtype = bfloat16() if half else None
    try:
        parts = data if dtype is None else data.view(dtype), indices, indptr
        return _FORMATS[form.removesuffix(_BFLOAT16)](parts, shape).copy()  # type: ignore[arg-type]  # checked there
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a sparse matrix: {error}") from None
