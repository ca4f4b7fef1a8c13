"""Valid arguments of the public callables of `quantize`, and of the layers it makes."""

from __future__ import annotations

from typing import Any

import numpy as np

from compressrs import nn, quantize, sparse
from tests.faults.calls import model, st
from tests.faults.optim_calls import Arguments, Method, w


def scheme() -> Any:
    return quantize.Scheme(bits=4)


def codebook() -> Any:
    return quantize.kmeans(w(), quantize.Scheme(bits=2, dtype="codebook"))


def sparse_codes() -> Any:
    return quantize.QuantizedCSRMatrix.from_csr(sparse.CSRMatrix.from_dense(w()))


def ones() -> Any:
    return np.ones((8, 1))


def fixed() -> dict[str, Any]:
    return {"activation_scale": 0.1, "activation_zero_point": 3}


def attention() -> Any:
    model = nn.Sequential(nn.MultiHeadAttention(8, 2, rng=0))
    return quantize.quantize_model(model, quantize.Scheme(bits=8))[0]


CALLS: dict[str, Arguments] = {
    "nn.QuantizedLinear": lambda: dict(
        weight=quantize.quantize(w(), scheme()),
        bias=None,
        input="int8",
        input_scale=None,
        **fixed(),
    ),
    "nn.QuantizedLinear.from_linear": lambda: dict(
        layer=nn.Linear(3, 2), scheme=scheme(), input="int8", **fixed()
    ),
    "nn.QuantizedSparseLinear": lambda: dict(weight=sparse_codes(), bias=None),
    "nn.QuantizedSparseLinear.from_sparse": lambda: dict(
        layer=nn.SparseLinear(sparse.CSRMatrix.from_dense(w().astype("f"))),
        scheme=quantize.Scheme(),
    ),
    "nn.QuantizedSparseLinear.from_linear": lambda: dict(
        layer=nn.Linear(3, 2), scheme=quantize.Scheme(), threshold=0.0, mask=None
    ),
    "nn.QuantizedConv2d": lambda: dict(
        weight=quantize.quantize(np.ones((4, 2, 3, 3), np.float32), scheme()),
        bias=None,
        stride=1,
        padding=1,
        dilation=1,
        groups=2,
        input="int8",
        **fixed(),
    ),
    "nn.QuantizedConv2d.from_conv": lambda: dict(
        layer=nn.Conv2d(2, 4, 3), scheme=scheme(), input="int8", **fixed()
    ),
    "nn.FakeQuantizedConv2d": lambda: dict(
        layer=nn.Conv2d(2, 4, 3), scheme=scheme(), input="float32"
    ),
    "nn.QuantizedEmbedding": lambda: dict(weight=quantize.quantize(w(), scheme())),
    "nn.QuantizedEmbedding.from_embedding": lambda: dict(layer=nn.Embedding(5, 3), scheme=scheme()),
    "nn.QuantizedMultiHeadAttention": lambda: dict(
        in_proj=attention().in_proj, out_proj=attention().out_proj, heads=2, causal=True
    ),
    "nn.FakeQuantizedLinear": lambda: dict(layer=nn.Linear(3, 2), scheme=scheme(), input="float32"),
    "quantize.Scheme": lambda: dict(
        bits=4, symmetric=True, granularity="group", group_size=4, dtype="int"
    ),
    "quantize.QuantizedTensor": lambda: dict(
        codes=np.zeros((8, 16), np.int8),
        scale=ones(),
        zero_point=None,
        scheme=scheme(),
        codebook=None,
        group_index=None,
        dtype="f4",
    ),
    "quantize.quantize": lambda: dict(w=w(), scheme=scheme(), scale=ones(), zero_point=None),
    "quantize.parameters": lambda: dict(low=-ones(), high=ones(), scheme=scheme()),
    "quantize.kmeans": lambda: dict(w=w(), scheme=codebook().scheme, keep_zero=False, rounds=10),
    "quantize.codebook_gradient": lambda: dict(q=codebook(), dw=w()),
    "quantize.fake_quantize": lambda: dict(
        x=w(), scheme=scheme(), scale=ones(), zero_point=None, out=None
    ),
    "quantize.fake_quantize_backward": lambda: dict(
        x=w(), dy=w(), scheme=scheme(), scale=ones(), zero_point=None, lsq=True, out=None
    ),
    "quantize.lsq_scale": lambda: dict(w=w(), scheme=scheme()),
    "quantize.mse_scale": lambda: dict(w=w(), scheme=scheme(), steps=2, least=0.5),
    "quantize.hqq": lambda: dict(w=w(), scheme=scheme(), p=0.7, beta=10.0, kappa=1.01, rounds=2),
    "quantize.gptq": lambda: dict(
        w=w(),
        statistics=st(),
        scheme=scheme(),
        scale=None,
        zero_point=None,
        act_order=False,
        static_groups=False,
        damping=0.01,
        block=4,
    ),
    "quantize.prune_and_quantize": lambda: dict(
        w=w(),
        statistics=st(),
        scheme=scheme(),
        sparsity=0.5,
        nm=None,
        damping=0.01,
        block=4,
    ),
    "quantize.adaround": lambda: dict(
        w=w(),
        statistics=st(),
        scheme=scheme(),
        scale=None,
        zero_point=None,
        steps=3,
        lr=0.01,
        strength=1.0,
    ),
    "quantize.awq": lambda: dict(w=w(), statistics=st(), scheme=scheme(), steps=2),
    "quantize.smooth_scale": lambda: dict(weights=w(), ranges=np.ones(16), alpha=0.5),
    "quantize.equalize": lambda: dict(first=w(), bias=None, second=w().T.copy()),
    "quantize.bias_correction": lambda: dict(
        w=w(), q=quantize.quantize(w(), scheme()), mean=np.ones(16), bias=None
    ),
    "quantize.quantize_model": lambda: dict(
        model=model(),
        scheme=scheme(),
        calibration=np.ones((3, 16), "f"),
        method="nearest",
        input="int8",
        activations=quantize.Scheme(granularity="tensor"),
        observer=quantize.MinMax,
        correct_bias=True,
    ),
    "quantize.HadamardRotation": lambda: dict(n=4, rng=0),
    "quantize.Observer": lambda: dict(channels=3),
    "quantize.MinMax": lambda: dict(channels=3),
    "quantize.MovingAverage": lambda: dict(channels=3, momentum=0.1),
    "quantize.Histogram": lambda: dict(channels=3, bins=64),
    "quantize.Percentile": lambda: dict(channels=3, percentile=99.0, bins=64),
    "quantize.MSE": lambda: dict(channels=3, bits=4, symmetric=True, bins=64),
    "quantize.Entropy": lambda: dict(channels=3, bits=4, bins=64),
}

CALLS |= {
    "quantize.QuantizedCSRMatrix": lambda: dict(
        arrays=(
            sparse_codes().codes,
            sparse_codes().scale,
            sparse_codes().indices,
            sparse_codes().indptr,
        ),
        shape=(8, 16),
        scheme=quantize.Scheme(),
    ),
    "quantize.QuantizedMatrix": lambda: dict(q=quantize.quantize(w(), scheme())),
    "quantize.matmul_integer": lambda: dict(
        a=np.ones((2, 3), np.uint8), b=np.ones((3, 2), np.int8), out=None
    ),
}

METHODS: dict[str, Method] = {
    "Quantized.dequantize": (codebook, "dequantize", lambda: dict(out=None)),
    "Quantized.rows": (codebook, "rows", lambda: dict(indices=[0, 1], out=None)),
    "QuantizedLinear.forward": (
        lambda: nn.QuantizedLinear(codebook()),
        "forward",
        lambda: dict(x=np.ones((2, 16))),
    ),
    "QuantizedSparseLinear.forward": (
        lambda: nn.QuantizedSparseLinear(sparse_codes()),
        "forward",
        lambda: dict(x=np.ones((2, 16), "f")),
    ),
    "QuantizedEmbedding.forward": (
        lambda: nn.QuantizedEmbedding(quantize.quantize(w(), scheme())),
        "forward",
        lambda: dict(x=np.array([1, 2])),
    ),
    "QuantizedMultiHeadAttention.forward": (
        attention,
        "forward",
        lambda: dict(x=np.ones((2, 3, 8), "f"), lengths=np.array([1, 3])),
    ),
    "FakeQuantizedLinear.forward": (
        lambda: nn.FakeQuantizedLinear(nn.Linear(3, 2), scheme()),
        "forward",
        lambda: dict(x=np.ones((2, 3), "f")),
    ),
    "QuantizedConv2d.forward": (
        lambda: nn.QuantizedConv2d.from_conv(nn.Conv2d(2, 4, 3), scheme()),
        "forward",
        lambda: dict(x=np.ones((2, 2, 4, 4), "f")),
    ),
    "FakeQuantizedConv2d.forward": (
        lambda: nn.FakeQuantizedConv2d(nn.Conv2d(2, 4, 3), scheme()),
        "forward",
        lambda: dict(x=np.ones((2, 2, 4, 4), "f")),
    ),
    "Rotation()": (lambda: quantize.HadamardRotation(16), "__call__", lambda: dict(x=w())),
    "Observer.update": (
        lambda: quantize.MSE(16),
        "update",
        lambda: dict(x=w(), mask=np.ones(8, bool)),
    ),
    "Observer.merge": (quantize.MinMax, "merge", lambda: dict(other=quantize.MinMax())),
}

#: Protocols, records, and a kernel with tests of its own.
LEFT_OUT = {
    "quantize.Scaled",
}
