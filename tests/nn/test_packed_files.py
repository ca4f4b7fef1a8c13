"""Files of models hold codes of less than 8 bits packed."""

import json

import numpy as np
import pytest

pytest.importorskip("safetensors")

from compressrs import checkpoint, nn
from compressrs._files import load_tensors, save_tensors
from compressrs.nn import _packing
from compressrs.quantize import QuantizedTensor, Scheme, quantize, quantize_model


def packed_by_bits(codes, bits):
    """Return what `pack` does, one bit at a time."""
    packed = np.zeros(-(-codes.size * bits // 8), np.uint8)
    for i, code in enumerate(codes.ravel().tolist()):
        for bit in range(bits):
            packed[(i * bits + bit) // 8] |= (code >> bit & 1) << (i * bits + bit) % 8
    return packed


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (3, 5), (2, 3, 4, 3)])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("bits", range(2, 8))
def test_packing_is_that_of_the_reference(bits, dtype, shape):
    low = -(1 << (bits - 1)) if dtype == "int8" else 0
    codes = np.random.default_rng(bits).integers(low, low + (1 << bits), shape).astype(dtype)
    packed = _packing.pack(codes, bits)
    assert packed.tobytes() == packed_by_bits(codes, bits).tobytes()
    again = _packing.unpack(packed, bits, shape, dtype)
    assert again.dtype == dtype and np.array_equal(again, codes)


@pytest.mark.parametrize("bits", [3, 4])
def test_packing_in_parts(bits, monkeypatch):
    codes = np.random.default_rng(0).integers(0, 1 << bits, 8 * 37 + 5).astype(np.uint8)
    whole = _packing.pack(codes, bits)
    monkeypatch.setattr(_packing, "_PART", 16)
    assert np.array_equal(_packing.pack(codes, bits), whole)
    assert np.array_equal(_packing.unpack(whole, bits, codes.shape, "uint8"), codes)


def models(scheme):
    dense = nn.Sequential(
        nn.Embedding(50, 64, rng=0),
        nn.Residual(nn.MultiHeadAttention(64, 4, rng=1)),
        nn.Linear(64, 96, rng=2),
    )
    images = nn.Sequential(nn.Conv2d(8, 16, 3, rng=0), nn.ReLU(), nn.Conv2d(16, 8, 3, rng=1))
    ids = np.random.default_rng(0).integers(0, 50, (2, 9))
    pixels = np.random.default_rng(0).standard_normal((2, 8, 9, 9)).astype(np.float32)
    found = [(quantize_model(dense, scheme), ids), (quantize_model(images, scheme), pixels)]
    if scheme.symmetric and scheme.dtype == "int":
        layer = nn.SparseLinear.from_linear(nn.Linear(64, 32, rng=0), threshold=0.1)
        sparse = nn.Sequential(nn.QuantizedSparseLinear.from_sparse(layer, scheme))
        found.append((sparse, pixels.reshape(-1)[: 5 * 64].reshape(5, 64)))
    return found


SCHEMES = [
    *(Scheme(bits=bits) for bits in range(2, 9)),
    Scheme(bits=4, symmetric=False, granularity="group", group_size=8),
    Scheme(bits=3, symmetric=False, dtype="uint"),
    Scheme(bits=4, dtype="nf4"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_every_quantized_layer_comes_back_from_packed_codes(scheme, tmp_path):
    path, small = tmp_path / "model.safetensors", tmp_path / "small.safetensors"
    for model, x in models(scheme):
        model.save(path)
        checkpoint.compress(path, small)
        expected, state = model(x), model.state_dict()
        stored, metadata = load_tensors(path, {})
        assert metadata["version"] == ("1" if scheme.bits == 8 else "2")
        for name, array in stored.items():
            own = state[name]
            codes = name.endswith(("weight.codes", "weight.zero_point"))
            size = -(-own.size * scheme.bits // 8) if codes else own.nbytes
            assert array.nbytes == size
        for file in (path, small):
            again = nn.load(file)
            assert again(x).tobytes() == expected.tobytes()
            assert {k: (a.dtype, a.tobytes()) for k, a in again.state_dict().items()} == {
                k: (a.dtype, a.tobytes()) for k, a in state.items()
            }
            again.load(file)
            assert again(x).tobytes() == expected.tobytes()


def test_the_size_of_a_file_is_what_nbytes_says(tmp_path):
    layer = nn.Linear(384, 512, bias=False, rng=0)
    for bits in (8, 4, 2):
        scheme = Scheme(bits=bits, granularity="group", group_size=32)
        small = nn.Sequential(nn.QuantizedLinear.from_linear(layer, scheme))
        small.save(tmp_path / "model.safetensors")
        size = (tmp_path / "model.safetensors").stat().st_size
        nbytes = quantize(layer.weight, scheme).nbytes
        assert small[0].nbytes == nbytes
        assert nbytes < size < nbytes + 2000
        # In memory a code takes a byte.
        assert small.summary().nbytes == sum(a.nbytes for a in small.state_dict().values())


def rewritten(path, change):
    arrays, metadata = load_tensors(path, {})
    arrays, metadata = dict(arrays), dict(metadata)
    change(arrays, metadata)
    save_tensors(path, arrays, {k: v for k, v in metadata.items() if k != "checksum"})


@pytest.fixture
def path(tmp_path):
    model = nn.Sequential(nn.QuantizedLinear.from_linear(nn.Linear(9, 5, rng=0), Scheme(bits=4)))
    model.save(tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_files_of_version_1_are_read(path):
    expected = nn.load(path)

    def unpacked(arrays, metadata):
        arrays["0.weight.codes"] = expected[0].weight.codes
        metadata["version"] = "1"
        del metadata["packed"]

    rewritten(path, unpacked)
    x = np.ones((2, 9), np.float32)
    assert nn.load(path)(x).tobytes() == expected(x).tobytes()
    expected.load(path)


@pytest.mark.parametrize(
    "about",
    [
        {"bits": 9},
        {"bits": 1},
        {"bits": "4"},
        {"bits": 3},
        {"shape": [9, 6]},
        {"shape": [-5, -9]},
        {"shape": [10**9, 10**9]},
        {"shape": 45},
        {"dtype": "float32"},
        {"dtype": "uint8"},
        {"dtype": None},
    ],
)
def test_metadata_that_does_not_fit_is_refused(path, about):
    model = nn.load(path)
    before = {k: a.copy() for k, a in model.state_dict().items()}

    def change(arrays, metadata):
        packed = json.loads(metadata["packed"])
        packed["0.weight.codes"] |= about
        metadata["packed"] = json.dumps(packed)

    rewritten(path, change)
    for load in (nn.load, model.load):
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            load(path)
    assert all(np.array_equal(before[k], a) for k, a in model.state_dict().items())


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"none": {"bits": 4, "shape": [1], "dtype": "int8"}}']
)
def test_metadata_of_another_form_is_refused(path, text):
    rewritten(path, lambda arrays, metadata: metadata.update(packed=text))
    with pytest.raises(ValueError, match="packed"):
        nn.load(path)


def test_codes_beyond_their_bits_are_not_written(tmp_path):
    codes = np.zeros((2, 8), np.int8)
    weight = QuantizedTensor(codes, np.ones((2, 1), np.float32), scheme=Scheme(bits=4))
    model = nn.Sequential(nn.QuantizedLinear(weight))
    model.save(tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    model.state_dict()["0.weight.codes"][0, 0] = 8
    with pytest.raises(ValueError, match=r"0\.weight\.codes must be from -8 to 7"):
        model.save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
