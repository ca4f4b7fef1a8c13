"""Files of matrices whose members say they are larger, or smaller, than they are."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

import compressrs as cr

MATRIX = cr.sparse.CSRMatrix.from_dense(np.eye(4))
CODES = cr.quantize.QuantizedCSRMatrix.from_csr(MATRIX)
LOADERS = {
    "csr": (cr.sparse.load_npz, lambda path: cr.sparse.save_npz(path, MATRIX), "data"),
    "codes": (cr.quantize.QuantizedCSRMatrix.load, CODES.save, "codes"),
}
LARGE = 1 << 24


def npy(array):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def header(shape, dtype="<f8"):
    buffer = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


@pytest.fixture(params=LOADERS)
def kind(request, tmp_path):
    load, save, values = LOADERS[request.param]
    path = tmp_path / "a.npz"
    save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return load, path, members, f"{values}.npy"


def refused(load, path):
    """The message of a ValueError that costs little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is not a sparse matrix: ") as caught:
            load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    return str(caught.value)


def write(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_member_that_is_larger_than_its_header_says(kind):
    load, path, members, _ = kind
    for name in members:
        write(path, {**members, name: members[name] + bytes(LARGE)})
        assert "bytes as" in refused(load, path)
    write(path, members)
    load(path)


def test_a_header_that_says_more_than_there_is(kind):
    load, path, members, values = kind
    for shape in ((2**27,), (2**62,), (2**40, 2**40), (-4,), (2**62, 0, 4)):
        write(path, {**members, values: header(shape)})
        refused(load, path)


def test_arrays_that_do_not_fit_each_other(kind):
    load, path, members, values = kind
    write(path, {**members, values: npy(np.zeros(LARGE, np.int8))})
    assert "the same number of entries" in refused(load, path)
    write(path, {**members, "indptr.npy": npy(np.zeros(LARGE, np.int64))})
    assert "indptr has more elements" in refused(load, path)
    for name in ("format.npy", "shape.npy"):
        write(path, {**members, name: npy(np.zeros(LARGE, np.int8))})
        assert "one name and two numbers" in refused(load, path)
    write(path, {**members, "format.npy": npy(np.array(b"x" * LARGE))})
    assert "format is of dtype" in refused(load, path)


def test_an_archive_that_says_more_than_there_is(kind):
    """The sizes in the directory at the end of the archive, of which readers allocate."""
    load, path, members, values = kind
    large = header((2**28,))
    whole = len(large) + 2**31
    write(path, {**members, values: large}, zipfile.ZIP_STORED)
    data = path.read_bytes()
    old = len(large).to_bytes(4, "little")
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(values.encode()))
    for stored in (len(large), whole):
        sizes = stored.to_bytes(4, "little") + whole.to_bytes(4, "little")
        assert data[entry + 20 : entry + 28] == old + old
        path.write_bytes(data[: entry + 20] + sizes + data[entry + 28 :])
        assert "more than there are" in refused(load, path)


def test_other_methods_of_compression(kind):
    """Of which a few bytes may be gigabytes."""
    load, path, members, _ = kind
    write(path, members, zipfile.ZIP_LZMA)
    assert "another method than deflate" in refused(load, path)


def test_a_large_matrix_of_zeros_is_a_matrix(tmp_path):
    n = 1 << 20
    arrays = np.zeros(n, np.float32), np.arange(n, dtype=np.int32), np.array([0, n])
    cr.sparse.save_npz(tmp_path / "a.npz", cr.sparse.CSRMatrix(arrays, (1, n)))
    assert not cr.sparse.load_npz(tmp_path / "a.npz").data.any()
