"""Files in the format of `scipy.sparse.save_npz`."""

from __future__ import annotations

import errno
import io
import math
import os
import zipfile
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

#: The most bytes of the name of a format.
_LONGEST_NAME = 256


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
    if path.name in ("", ".."):
        raise ValueError(f"file must name a file, got {str(path)!r}")
    if path.suffix != ".npz":
        path = path.with_name(path.name + ".npz")
    buffer = io.BytesIO()
    save: Any = np.savez_compressed if compressed else np.savez
    save(buffer, format=np.array(name.encode()), **parts)
    write_atomically(path, buffer.getvalue())


#: The arrays of which each entry of a matrix has one element, in the formats of all files.
_OF_ENTRIES = ("data", "codes", "indices")

#: The most bytes that a byte of a deflated member can expand to.
_MOST_DEFLATED = 1032


def read_npz(
    path: Path, formats: tuple[str, ...], names: tuple[str, ...]
) -> tuple[str, tuple[int, ...], list[Array]]:
    """Return the name of the format, the shape and the arrays of these names.

    What the members say of their sizes is compared with each other, and with the size of the
    file, before any array is decompressed.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is corrupt, of another format, or has no such arrays.
    MemoryError
        If memory cannot hold the arrays.
    """
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
        with zipfile.ZipFile(stream) as archive:
            size = os.fstat(stream.fileno()).st_size
            headers = {name: _header(archive, name, size) for name in ("format", "shape")}
            if headers["format"] != () or headers["shape"] != (2,):
                raise ValueError("its format and its shape are not one name and two numbers")
            form = _array(archive, "format").item()
            form = form.decode("ascii", "replace") if isinstance(form, bytes) else str(form)
            if form not in formats:
                return form, (), []
            shape = tuple(_array(archive, "shape").tolist())
            headers = {name: _header(archive, name, size) for name in names}
            lengths = {headers[name][:1] for name in names if name in _OF_ENTRIES}
            if len(lengths) != 1:
                raise ValueError("its arrays are not of the same number of entries")
            if math.prod(headers["indptr"]) > shape[0] + 1:
                raise ValueError("indptr has more elements than the matrix has rows")
            return form, shape, [_array(archive, name) for name in names]
    except OSError as error:
        # Offsets in a corrupt archive may lead before its start.
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path} is not a sparse matrix: {error}") from None
    except MemoryError:
        raise MemoryError(f"the arrays of {path} are more than memory can hold") from None
    except Exception as error:  # a corrupt archive can raise almost anything
        raise ValueError(f"{path} is not a sparse matrix: {error}") from None


def _header(archive: zipfile.ZipFile, name: str, size: int) -> tuple[int, ...]:
    """Return the shape of an array in an archive of `size` bytes, after checking what is said.

    The archive says how long the member is, the member's header how many numbers it holds;
    nothing else of it is decompressed.
    """
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed by another method than deflate")
    most = _MOST_DEFLATED if member.compress_type == zipfile.ZIP_DEFLATED else 1
    if not member.file_size <= most * member.compress_size <= most * size:
        raise ValueError(f"{name} is said to have {member.file_size} bytes, more than there are")
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read: Any = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, _, dtype = read(stream)
        start = stream.tell()
    if dtype.kind not in "biufSU" or dtype.itemsize > _LONGEST_NAME:
        raise ValueError(f"{name} is of dtype {dtype}")
    if member.file_size != start + math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
        raise ValueError(f"{name} has not as many bytes as {dtype} of shape {shape}")
    return tuple(shape)


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    """Return an array of an archive, read in pieces."""
    with archive.open(f"{name}.npy") as stream:
        array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def load_npz(file: str | os.PathLike[str]) -> CSRMatrix | BSRMatrix:
    """Load a CSR or BSR matrix that `save_npz`, or SciPy's, wrote.

    Its pattern is immutable and checked once. A deflated file may hold up to a thousand times its
    size: the arrays take the memory that their headers say, which is compared with the file first.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is corrupt, or does not hold a CSR or BSR matrix.
    MemoryError
        If memory cannot hold the arrays.
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
