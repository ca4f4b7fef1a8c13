"""Valid arguments of the public callables of `nn`, `prune`, `sparse`, `distill` and runs."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from compressrs import TrainState, distill, nn, optim, prune, quantize, sparse
from tests.faults.optim_calls import Arguments, Method, w


def A() -> Any:
    return sparse.CSRMatrix.from_dense(w())


def st() -> Any:
    found = prune.InputStatistics(16, gram=True)
    found.update(np.random.default_rng(1).standard_normal((40, 16)))
    return found


def saved_statistics() -> Path:
    path = Path(tempfile.mkdtemp()) / "a.safetensors"
    prune.save_statistics(path, {"a": st()})
    return path


def model() -> Any:
    return nn.Sequential(nn.Linear(16, 8, rng=0), nn.ReLU(), nn.Linear(8, 2, rng=1))


def perceptron() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((4,), tol=9.0).fit(np.eye(3), np.arange(3))


def withopt(make: Callable[[Any, Any], Any]) -> Any:
    layer = nn.SparseLinear(A())
    return make(layer, optim.Adam(layer.params))


def image() -> Any:
    return np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 2, 4, 4)


def distilling(student: Any) -> dict[str, Any]:
    optimizer = optim.Adam(student.params)
    return dict(
        student=student,
        teacher=np.ones((8, 3), np.float32),
        optimizer=optimizer,
        loss=distill.kd_loss,
        temperature=2.0,
        alpha=0.5,
        scheduler=None,
        pruner=None,
        ema=None,
        after_step=None,
        after_epoch=None,
        batch_size=4,
        rng=0,
    )


def distiller() -> Any:
    return distill.Distiller(**distilling(nn.Linear(16, 3, rng=0)))


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def cached() -> Any:
    path = Path(folder().name) / "cache"
    distill.TeacherCache.write(path, lambda rows: rows, w().astype(np.float32))
    return path


def run() -> Any:
    return TrainState(model=model(), rng=np.random.default_rng(0))


def layer(make: Callable[[], Any], x: Callable[[], Any]) -> dict[str, Method]:
    """Return entries of `forward` and of `backward` after it."""

    def after() -> Any:
        made = make()
        made.forward(x())
        return made

    name = type(make()).__name__
    return {
        f"{name}.forward": (make, "forward", lambda: dict(x=x())),
        f"{name}.backward": (after, "backward", lambda: dict(dy=after().forward(x()))),
    }


#: Valid arguments of public functions and classes.
CALLS: dict[str, Arguments] = {
    "prune.magnitude_threshold": lambda: dict(arrays=w(), sparsity=0.5),
    "prune.magnitude_mask": lambda: dict(w=w(), sparsity=0.5, threshold=None, allow_empty=False),
    "prune.nm_mask": lambda: dict(w=w(), n=2, m=4, axis=-1),
    "prune.block_mask": lambda: dict(w=w(), block=(2, 2), sparsity=0.5, norm=2, allow_empty=False),
    "prune.neuron_mask": lambda: dict(w=w(), axis=0, sparsity=0.5, norm=2, allow_empty=False),
    "prune.masks": lambda: dict(
        scores=w(), sparsity=0.5, scope="global", granularity=None, allow_empty=False
    ),
    "prune.neurons": lambda: dict(
        keep=np.ones(8, bool), outputs=[w()], inputs=[w().T.copy()], optimizer=None
    ),
    "prune.shrink": lambda: dict(
        model=model(),
        keep={0: np.arange(8) > 3},
        optimizer=None,
        ema=None,
        pruner=None,
        outputs=False,
    ),
    "prune.rewire": lambda: dict(matrix=A(), growth=w(), count=0, optimizer=None),
    "prune.sensitivity": lambda: dict(
        params=w(),
        evaluate=lambda: 0.0,
        sparsities=[0.5],
        score=None,
        granularity=None,
        progress=False,
    ),
    "prune.sparsegpt": lambda: dict(
        w=w(), statistics=st(), sparsity=0.5, nm=None, damping=0.01, block=4
    ),
    "prune.input_statistics": lambda: dict(
        model=model(), batches=np.zeros((3, 16), "f"), gram=False
    ),
    "prune.erdos_renyi": lambda: dict(shapes=[(3, 4)], sparsity=0.5),
    "prune.erdos_renyi_kernel": lambda: dict(shapes=[(3, 4)], sparsity=0.5),
    "prune.Pruner": lambda: dict(
        params=w(),
        schedule=prune.OneShot(0.5),
        score=None,
        scope="global",
        optimizer=None,
        granularity=None,
        allow_empty=False,
    ),
    "prune.MagnitudePruner": lambda: dict(
        params=w(),
        schedule=prune.OneShot(0.5),
        scope="global",
        optimizer=None,
        granularity=None,
        allow_empty=False,
    ),
    "prune.SET": lambda: withopt(
        lambda a, o: dict(layers=a, optimizer=o, fraction=0.3, frequency=1, end=5, rng=0)
    ),
    "prune.RigL": lambda: withopt(
        lambda a, o: dict(layers=a, optimizer=o, end=5, fraction=0.3, frequency=1)
    ),
    "prune.LotteryTicket": lambda: dict(params=w(), optimizer=None),
    "prune.Random": lambda: dict(rng=0),
    "prune.Wanda": lambda: dict(statistics=st()),
    "prune.save_statistics": lambda: dict(
        path=Path(tempfile.mkdtemp()) / "a.safetensors", statistics={"a": st()}
    ),
    "prune.load_statistics": lambda: dict(path=saved_statistics()),
    "prune.InputStatistics": lambda: dict(features=4, gram=True),
    "prune.OneShot": lambda: dict(final=0.5, begin=0),
    "prune.CubicSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.LinearSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.ExponentialSchedule": lambda: dict(initial=0.0, final=0.5, begin=0, end=10, frequency=1),
    "prune.IterativeSchedule": lambda: dict(rate=0.2, final=0.5, begin=0, frequency=1),
    "prune.Blocks": lambda: dict(block=(4, 4), norm=2),
    "prune.Neurons": lambda: dict(axis=0, norm=2),
    "prune.NM": lambda: dict(n=2, m=4, axis=0),
    "sparse.CSRMatrix": lambda: dict(arrays=(A().data, A().indices, A().indptr), shape=(8, 16)),
    "sparse.CSRMatrix.from_dense": lambda: dict(w=w(), threshold=0.0, mask=None, index_dtype=None),
    "sparse.BSRMatrix.from_dense": lambda: dict(w=w(), block=(4, 4), threshold=0.0, mask=None),
    "sparse.NMMatrix.from_dense": lambda: dict(w=w(), n=2, m=4, mask=None),
    "sparse.CSRMatrix.from_scipy": lambda: dict(matrix=A().to_scipy()),
    "sparse.BSRMatrix.from_scipy": lambda: dict(
        matrix=sparse.BSRMatrix.from_dense(w(), (4, 4)).to_scipy()
    ),
    "sparse.sddmm": lambda: dict(
        pattern=A(), u=np.ones((8, 2)), v=np.ones((2, 16)), out=None, accumulate=False
    ),
    "sparse.carry": lambda: dict(values=A().data, old=A(), new=A(), fill=0.0),
    "nn.Linear": lambda: dict(in_features=3, out_features=2, bias=True, dtype=np.float32, rng=0),
    "sparse.BSRMatrix": lambda: dict(
        arrays=sparse.BSRMatrix.from_dense(w(), (4, 4))._parts, shape=(8, 16)
    ),
    "sparse.NMMatrix": lambda: dict(
        arrays=(np.ones((8, 8)), sparse.NMMatrix.from_dense(w()).positions), shape=(8, 16), n=2, m=4
    ),
    "nn.SparseLinear": lambda: dict(weight=A(), bias=None),
    "nn.SparseLinear.from_linear": lambda: dict(layer=nn.Linear(3, 2), threshold=0.0, mask=None),
    "distill.top_k": lambda: dict(z=w(), k=2, temperature=1.0),
    "distill.softmax": lambda: dict(z=w(), temperature=1.0, axis=-1, out=None),
    "distill.log_softmax": lambda: dict(z=w(), temperature=1.0, axis=-1, out=None),
    "distill.logsumexp": lambda: dict(z=w(), temperature=1.0, axis=-1, out=None),
    "distill.TopK": lambda: dict(logits=A(), rest=np.zeros(8), temperature=1.0),
    "distill.kd_loss": lambda: dict(
        student=w(),
        teacher=w(),
        temperature=2.0,
        labels=np.arange(8),
        alpha=0.5,
        teacher_kind="logits",
        divergence="js",
        standardize=False,
        label_smoothing=0.1,
        class_weight=np.ones(16),
        sample_weight=np.ones(8),
        ignore_index=-100,
        reduction="mean",
        out=None,
    ),
    "distill.dkd_loss": lambda: dict(
        student=w(),
        teacher=w(),
        temperature=2.0,
        labels=np.arange(8),
        alpha=1.0,
        beta=8.0,
        teacher_kind="logits",
        sample_weight=np.ones(8),
        reduction="mean",
        out=None,
    ),
    "distill.dist_loss": lambda: dict(
        student=w(), teacher=w(), temperature=2.0, beta=1.0, gamma=1.0, out=None
    ),
    "distill.hint_loss": lambda: dict(student=w(), teacher=w(), out=None),
    "distill.attention_loss": lambda: dict(student=image(), teacher=image(), out=None),
    "distill.rkd_distance_loss": lambda: dict(student=w(), teacher=w(), out=None),
    "distill.rkd_angle_loss": lambda: dict(student=w(), teacher=w(), out=None),
    "distill.Distiller": lambda: distilling(nn.Linear(16, 3, rng=0)),
    "distill.TeacherCache": lambda: dict(path=cached()),
    "nn.Conv2d": lambda: dict(
        in_channels=2,
        out_channels=4,
        kernel_size=3,
        stride=1,
        padding=1,
        dilation=1,
        groups=2,
        bias=True,
        dtype=np.float32,
        rng=0,
    ),
    "nn.BatchNorm": lambda: dict(channels=3, eps=1e-5, momentum=0.1, dtype=np.float32),
    "nn.LayerNorm": lambda: dict(features=3, eps=1e-5, bias=True, dtype=np.float32),
    "nn.Embedding": lambda: dict(
        num_embeddings=4, features=3, dtype=np.float32, rng=0, sparse=False
    ),
    "nn.MultiHeadAttention": lambda: dict(
        features=8, heads=2, causal=True, bias=True, dtype=np.float32, rng=0
    ),
    "nn.MaxPool": lambda: dict(kernel_size=2, stride=None, padding=0),
    "nn.AvgPool": lambda: dict(kernel_size=2, stride=None, padding=0),
    "nn.Dropout": lambda: dict(p=0.5, rng=0),
    "nn.GELU": lambda: dict(approximate="none"),
    "nn.Residual": lambda: dict(shortcut=None),
    "nn.cross_entropy": lambda: dict(
        logits=w(),
        labels=np.arange(8),
        label_smoothing=0.1,
        class_weight=np.ones(16),
        sample_weight=np.ones(8),
        ignore_index=-100,
        reduction="mean",
        out=None,
    ),
    "nn.mse_loss": lambda: dict(prediction=w(), target=w(), reduction="mean"),
    "nn.fold_batch_norm": lambda: dict(model=model()),
    "nn.update_batch_norm": lambda: dict(
        model=nn.BatchNorm(3), batches=[np.ones((2, 3), np.float32)]
    ),
    "nn.recommend": lambda: dict(
        layer=nn.Linear(3, 2, rng=0),
        batch=2,
        threshold=0.0,
        mask=None,
        seconds=1e-5,
        scheme=quantize.Scheme(),
    ),
    "nn.from_mlp": lambda: dict(estimator=perceptron()),
    "nn.to_mlp": lambda: dict(model=nn.from_mlp(perceptron()), estimator=perceptron()),
    "prune.groups": lambda: dict(model=model(), outputs=True),
    "prune.GroupPruner": lambda: dict(
        model=model(), schedule=prune.OneShot(0.5), optimizer=None, scope="global", norm=2
    ),
    "TrainState": lambda: dict(model=model(), rng=np.random.default_rng(0)),
}

#: Valid arguments of methods, with the object they belong to.
METHODS: dict[str, Method] = {
    "CSR.matmul": (
        A,
        "matmul",
        lambda: dict(x=np.ones(16), out=None, bias=None, relu=False, accumulate=False),
    ),
    "CSR.rmatmul": (
        A,
        "rmatmul",
        lambda: dict(y=np.ones(8), out=None, bias=None, relu=False, accumulate=False),
    ),
    "CSR.with_data": (A, "with_data", lambda: dict(data=A().data)),
    "CSR.astype": (A, "astype", lambda: dict(dtype="f4")),
    "CSR.scale_rows": (A, "scale_rows", lambda: dict(factors=np.ones(8))),
    "CSR.scale_columns": (A, "scale_columns", lambda: dict(factors=np.ones(16))),
    "CSR.with_pattern": (A, "with_pattern", lambda: dict(pattern=A(), fill=0.0)),
    "CSR.union": (A, "union", lambda: dict(other=A())),
    "CSR.intersection": (A, "intersection", lambda: dict(other=A())),
    "NM.with_data": (
        lambda: sparse.NMMatrix.from_dense(w()),
        "with_data",
        lambda: dict(data=np.ones((8, 8))),
    ),
    "Linear.forward": (lambda: nn.Linear(3, 2), "forward", lambda: dict(x=np.ones((2, 3), "f"))),
    "Sequential.forward": (model, "forward", lambda: dict(x=np.ones((2, 16), "f"))),
    "Sequential[]": (model, "__getitem__", lambda: dict(index=0)),
    "Stat.update": (st, "update", lambda: dict(x=np.ones((2, 16)))),
    "Snip.update": (prune.Snip, "update", lambda: dict(weights=w(), grads=w())),
    "Magn.scores": (prune.Magnitude, "scores", lambda: dict(weights=w())),
    "Random.scores": (prune.Random, "scores", lambda: dict(weights=w())),
    "Random.lsd": (
        prune.Random,
        "load_state_dict",
        lambda: dict(state_dict=prune.Random(0).state_dict()),
    ),
    "Snip.lsd": (prune.Snip, "load_state_dict", lambda: dict(state_dict=prune.Snip().state_dict())),
    "Wanda.scores": (lambda: prune.Wanda(st()), "scores", lambda: dict(weights=w())),
    "Pruner.step": (
        lambda: prune.Pruner(w(), prune.OneShot(0.5), prune.Snip()),
        "step",
        lambda: dict(grads=w()),
    ),
    "Pruner.lsd": (
        lambda: prune.Pruner(w(), prune.OneShot(0.5)),
        "load_state_dict",
        lambda: dict(state_dict=prune.Pruner(w(), prune.OneShot(0.5)).state_dict()),
    ),
    "SET.lsd": (
        lambda: prune.SET(**CALLS["prune.SET"]()),
        "load_state_dict",
        lambda: dict(state_dict=prune.SET(**CALLS["prune.SET"]()).state_dict()),
    ),
    "Ticket.rewind": (lambda: prune.LotteryTicket(w()), "rewind", lambda: dict(masks=None)),
    "OneShot()": (prune.OneShot, "__call__", lambda: dict(step=0)),
    **layer(lambda: nn.Conv2d(2, 3, 3, rng=0), image),
    **layer(lambda: nn.BatchNorm(2), image),
    **layer(lambda: nn.LayerNorm(4), image),
    **layer(lambda: nn.MaxPool(2), image),
    **layer(lambda: nn.AvgPool(2), image),
    **layer(lambda: nn.Dropout(0.5, rng=0), image),
    **layer(nn.Flatten, image),
    **layer(nn.ReLU, image),
    **layer(nn.GELU, image),
    **layer(nn.SiLU, image),
    **layer(nn.Softmax, image),
    **layer(lambda: nn.Residual(nn.ReLU()), image),
    **layer(lambda: nn.MultiHeadAttention(4, 2, rng=0), lambda: image()[0]),
    **layer(lambda: nn.Embedding(4, 3, rng=0), lambda: np.array([1, 2])),
    "MultiHeadAttention.lengths": (
        lambda: nn.MultiHeadAttention(4, 2, rng=0),
        "forward",
        lambda: dict(x=image()[0], lengths=np.array([4, 2])),
    ),
    "Conv2d.from_arrays": (
        lambda: nn.Conv2d,
        "from_arrays",
        lambda: dict(
            weight=np.ones((4, 1, 3, 3)),
            bias=np.ones(4),
            stride=1,
            padding=0,
            dilation=1,
            groups=2,
        ),
    ),
    "Sequential.load_state_dict": (
        model,
        "load_state_dict",
        lambda: dict(state_dict=model().state_dict()),
    ),
    "Sequential.summary": (model, "summary", lambda: dict(input_shape=(16,))),
    "Distiller.fit": (
        distiller,
        "fit",
        lambda: dict(
            x=w().astype(np.float32),
            y=np.arange(8) % 3,
            epochs=1,
            hard_epochs=1,
            sample_weight=np.ones(8),
            validation=(w().astype(np.float32), np.arange(8) % 3),
            patience=1,
            checkpoint=None,
            progress=False,
        ),
    ),
    "TeacherCache.write": (
        lambda: distill.TeacherCache,
        "write",
        lambda: dict(
            path=tempfile.mkdtemp(dir=folder().name),
            teacher=lambda rows: rows,
            x=w().astype(np.float32),
            k=2,
            temperature=1.0,
            dtype="float32",
            batch_size=4,
            shard_rows=4,
            progress=False,
        ),
    ),
    "TeacherCache[]": (
        lambda: distill.TeacherCache(cached()),
        "__getitem__",
        lambda: dict(rows=slice(0, 2)),
    ),
    "TopK[]": (lambda: distill.top_k(w(), 2), "__getitem__", lambda: dict(rows=slice(0, 2))),
    "TrainState.load_state_dict": (
        run,
        "load_state_dict",
        lambda: dict(state_dict=run().state_dict()),
    ),
    "GroupPruner.load_state_dict": (
        lambda: prune.GroupPruner(model(), prune.OneShot(0.5)),
        "load_state_dict",
        lambda: dict(state_dict=prune.GroupPruner(model(), prune.OneShot(0.5)).state_dict()),
    ),
    "Group.scores": (
        lambda: prune.groups(model())[0],
        "scores",
        lambda: dict(model=model(), norm=2),
    ),
}

#: Without arguments, records that are results, or about files, which have their own tests.
LEFT_OUT = {
    # Their arguments are checked in `fit`, as scikit-learn wants it.
    "distill.DistilledClassifier",
    "distill.DistilledRegressor",
    "distill.Epoch",
    "nn.Affine",
    "nn.Flatten",
    "nn.Layer",
    "nn.ReLU",
    "nn.Recommendation",
    "nn.Sequential",
    "nn.SiLU",
    "nn.Softmax",
    "nn.Summary",
    "nn.load",
    "prune.CalibrationWarning",
    "prune.EmptyLayerWarning",
    "prune.Granularity",
    "prune.Group",
    "prune.Magnitude",
    "prune.Member",
    "prune.Movement",
    "prune.Score",
    "prune.Sensitivity",
    "prune.Snip",
    "prune.Taylor",
    "sparse.SparseMatrix",
    "sparse.TransposedMatrix",
    "sparse.load_npz",
    "sparse.save_npz",
}
