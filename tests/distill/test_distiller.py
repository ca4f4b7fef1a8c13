"""The teacher cache on disk, and the training of students."""

import contextlib
import functools
import json

import numpy as np
import pytest

import compressrs as cr

rich = pytest.importorskip("rich")
N, CLASSES = 1000, 40


@pytest.fixture
def data():
    """Return rows and weights whose products are exact: any BLAS gives the same logits.

    Multiples of 1/16 below 4 and of 1/64 below 8, so that sums of eight products are
    multiples of 1/1024 below 256, which float32 holds.
    """
    rng = np.random.default_rng(0)
    x = rng.integers(-63, 64, (N, 8)).astype(np.float32) / 16
    w = rng.integers(-511, 512, (8, CLASSES)).astype(np.float32) / 64
    return x, w


def write(folder, data, **kwargs):
    x, w = data
    return cr.distill.TeacherCache.write(
        folder, lambda rows: rows @ w, x, **{"shard_rows": 128, "batch_size": 50, **kwargs}
    )


ROWS = [slice(100, 400), np.array([999, 0, 500, 0, 127, 128]), np.arange(N) % 7 == 0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_all_logits_come_back(tmp_path, data, dtype):
    cache = write(tmp_path / "t", data, dtype=dtype)
    logits = (data[0] @ data[1]).astype(dtype)
    assert cache.shape == (N, CLASSES)
    assert (len(cache), cache.k, cache.temperature) == (N, None, None)
    for rows in ROWS:
        got = cache[rows]
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, logits[rows])
    again = cr.distill.TeacherCache(tmp_path / "t")
    np.testing.assert_array_equal(again[:], cache[:])
    assert repr(again) == f"<TeacherCache of shape ({N}, {CLASSES}), all logits>"


def test_the_largest_logits_come_back(tmp_path, data):
    cache = write(tmp_path / "t", data, k=6, temperature=3.0)
    kept = cr.distill.top_k(data[0] @ data[1], 6, 3.0)
    student = np.random.default_rng(1).standard_normal((N, CLASSES)).astype(np.float32)
    for rows in ROWS:
        a = cr.distill.kd_loss(student[rows], cache[rows], 3.0)
        b = cr.distill.kd_loss(student[rows], kept[rows], 3.0)
        assert a[0] == pytest.approx(b[0], rel=1e-5)
        np.testing.assert_allclose(a[1], b[1], atol=1e-6)
    size = sum(file.stat().st_size for file in (tmp_path / "t").iterdir())
    assert size < N * (6 * 8 + 8) + 20_000


def test_what_was_interrupted_goes_on(tmp_path, data):
    x, w = data
    asked = []

    def teacher(rows):
        asked.append(len(rows))
        if len(asked) == 8:
            raise KeyboardInterrupt
        return rows @ w

    arguments = {"k": 5, "shard_rows": 128, "batch_size": 50}
    with pytest.raises(KeyboardInterrupt):
        cr.distill.TeacherCache.write(tmp_path / "t", teacher, x, **arguments)
    with pytest.raises(ValueError, match="lacks the rows from 256 on; call TeacherCache"):
        cr.distill.TeacherCache(tmp_path / "t")
    asked[:] = [0] * 8
    cache = cr.distill.TeacherCache.write(tmp_path / "t", teacher, x, **arguments)
    # One row for the classes, a batch to compare, and what was missing.
    assert sum(asked) == 1 + 50 + N - 256
    whole = write(tmp_path / "whole", data, k=5)
    for file in (tmp_path / "whole").iterdir():
        if file.suffix == ".safetensors":
            ours = (tmp_path / "t" / file.name).read_bytes()
            assert len(ours) == file.stat().st_size
    np.testing.assert_array_equal(cache[:].logits.indices, whole[:].logits.indices)


def test_another_teacher_does_not_go_on(tmp_path, data):
    x, w = data
    write(tmp_path / "t", data)
    last = sorted((tmp_path / "t").glob("*.safetensors"))[-1]
    last.unlink()
    with pytest.raises(ValueError, match="begun with another teacher or data set: rows from 768"):
        write(tmp_path / "t", (x, w + 1))
    with pytest.raises(ValueError, match="begun with k None, got 3"):
        write(tmp_path / "t", data, k=3)
    with pytest.raises(ValueError, match="begun with rows 1000, got 999"):
        write(tmp_path / "t", (x[:-1], w))
    assert len(write(tmp_path / "t", data)) == N


@pytest.mark.parametrize("where", [10, 100, -1])
def test_damage_is_found_before_a_row_is_read(tmp_path, data, where):
    cache = write(tmp_path / "t", data, k=5)
    file = sorted((tmp_path / "t").glob("*.safetensors"))[2]
    content = bytearray(file.read_bytes())
    content[where] ^= 0x55
    file.write_bytes(content)
    cache = cr.distill.TeacherCache(tmp_path / "t")
    assert len(cache[:256]) == 256
    with pytest.raises(ValueError, match="rows-000000000256"):
        cache[200:300]
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        cache[256:257]
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"is damaged|empty"):
        cache[256:257]


def test_bad_caches(tmp_path, data):
    x, w = data
    with pytest.raises(FileNotFoundError):
        cr.distill.TeacherCache(tmp_path / "none")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be empty or hold such a cache"):
        write(tmp_path / "full", data)
    (tmp_path / "index").mkdir()
    for content in ("", "[]", "{}", json.dumps({"format": "compressrs.teacher", "version": "9"})):
        (tmp_path / "index" / "index.json").write_text(content)
        with pytest.raises(ValueError, match=r"index\.json"):
            cr.distill.TeacherCache(tmp_path / "index")
    bad = [
        ({"teacher": lambda rows: rows[:1] @ w}, ValueError, r"must have shape \(128, 40\)"),
        ({"teacher": lambda rows: (rows @ w)[0]}, ValueError, "must have shape"),
        ({"teacher": lambda rows: rows @ w * np.nan}, ValueError, "that fit float32"),
        ({"teacher": lambda rows: rows @ w * 1e6, "dtype": "float16"}, ValueError, "fit float16"),
        ({"teacher": lambda rows: (rows @ w) * np.nan, "k": 2}, ValueError, "finite logits"),
        ({"teacher": "me"}, TypeError, "teacher must be callable"),
        ({"x": x[:0]}, ValueError, "x must have at least one row"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"k": 41}, ValueError, "k must be at most the 40 classes"),
        ({"temperature": 0, "k": 1}, ValueError, "temperature must be"),
        ({"shard_rows": 0}, ValueError, "shard_rows must be at least 1"),
    ]
    for i, (kwargs, error, message) in enumerate(bad):
        arguments = {"teacher": lambda rows: rows @ w, "x": x, "shard_rows": 128, **kwargs}
        with pytest.raises(error, match=message):
            cr.distill.TeacherCache.write(tmp_path / str(i), **arguments)
    cache = write(tmp_path / "good", data)
    with pytest.raises(IndexError):
        cache[np.array([N])]
    with pytest.raises(TypeError, match="rows must be a slice"):
        cache[3]


def test_a_full_disk_loses_nothing(tmp_path, data, monkeypatch):
    from compressrs.distill import cache as module

    save, count = module.save_tensors, []

    def full(*arguments):
        count.append(1)
        if len(count) == 3:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(module, "save_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "t", data)
    monkeypatch.undo()
    assert len(list((tmp_path / "t").glob("*.safetensors"))) == 2
    np.testing.assert_array_equal(write(tmp_path / "t", data)[:], data[0] @ data[1])


def task(n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 6)).astype(np.float32)
    w = 3 * rng.standard_normal((6, 4)).astype(np.float32)
    logits = x @ w
    return x, logits.argmax(axis=1), logits, w


def student(seed=0):
    model = cr.nn.Sequential(
        cr.nn.Linear(6, 8, rng=seed), cr.nn.ReLU(), cr.nn.Linear(8, 4, rng=seed + 1)
    )
    return model, cr.optim.Adam(model.params, lr=0.02)


def weights(model):
    return np.concatenate([p.ravel() for layer in model.params.values() for p in layer.values()])


def test_all_kinds_of_teachers_teach_the_same(tmp_path):
    x, y, logits, w = task()
    cache = cr.distill.TeacherCache.write(tmp_path / "t", lambda rows: rows @ w, x)
    results = []
    for teacher in (lambda rows: rows @ w, logits, cache, [lambda rows: rows @ w, logits]):
        model, opt = student()
        history = cr.distill.Distiller(model, teacher, opt).fit(x, y, epochs=6)
        assert history[-1].loss < history[0].loss / 3
        results.append(weights(model))
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=1e-2)
    model, opt = student()
    kept = cr.distill.top_k(logits, 2, 4.0)
    history = cr.distill.Distiller(model, kept, opt, alpha=1.0).fit(x, epochs=6)
    assert history[-1].loss < history[0].loss / 3


def test_a_pair_of_callables_is_a_student():
    x, y, logits, _ = task()
    w = np.zeros((6, 4), np.float32)
    last = []

    def forward(rows):
        last[:] = [rows]
        return rows @ w

    opt = cr.optim.SGD(w, lr=0.05)
    pair = (forward, lambda gradient: last[0].T @ gradient)
    distiller = cr.distill.Distiller(pair, logits, opt)
    distiller.fit(x, y, epochs=10)
    assert np.mean(forward(x).argmax(axis=1) == y) > 0.9
    assert distiller.step_count == 10 * 13


def test_schedules_and_phases():
    x, y, logits, _ = task()
    seen = []

    def loss(z, teacher, temperature, labels, alpha):
        seen.append((temperature, alpha))
        return cr.distill.kd_loss(z, teacher, temperature, labels, alpha)

    model, opt = student()
    distiller = cr.distill.Distiller(
        model,
        logits,
        opt,
        loss=loss,
        temperature=lambda step: max(1.0, 8.0 - step / 10),
        alpha=lambda step: max(0.0, 1 - step / 100),
    )
    history = distiller.fit(x, y, epochs=2, hard_epochs=3, validation=(x, y))
    assert [epoch.phase for epoch in history] == ["soft"] * 2 + ["hard"] * 3
    assert seen == [(8.0 - step / 10, 1 - step / 100) for step in range(26)]
    assert history[-1].accuracy == np.mean(model(x).argmax(axis=1) == y)
    assert len(distiller.fit(x, y, epochs=4, hard_epochs=3)) == 7


def test_rows_without_labels_learn_from_the_teacher():
    x, y, logits, _ = task()
    hidden = np.where(np.arange(len(y)) % 10, -100, y)
    model, opt = student()
    cr.distill.Distiller(model, logits, opt).fit(x, hidden, epochs=10)
    assert np.mean(model(x).argmax(axis=1) == y) > 0.9


@pytest.mark.parametrize("stop_after", [2, 4, 5])
@pytest.mark.parametrize("patience", [None, 2])
def test_a_run_that_was_interrupted_ends_the_same(tmp_path, stop_after, patience):
    x, y, logits, _ = task()
    held_out = task(100, 0)[:2]

    def run(model, opt, path, teacher=logits):
        distiller = cr.distill.Distiller(model, teacher, opt, rng=3)
        return distiller.fit(
            x,
            y,
            epochs=4,
            hard_epochs=3,
            validation=held_out,
            patience=patience,
            checkpoint=path,
        )

    model, opt = student()
    history = run(model, opt, tmp_path / "whole")

    class Crash(Exception):
        pass

    calls = []
    broken, opt = student()
    forward = broken.forward

    def crashing(rows):
        calls.append(1)
        if len(calls) > stop_after * 14 + 5:
            raise Crash
        return forward(rows)

    broken.forward = crashing
    # With patience, training may end earlier.
    with contextlib.suppress(Crash):
        run(broken, opt, tmp_path / "part")
    fresh, opt = student(seed=50)
    assert run(fresh, opt, tmp_path / "part") == history
    np.testing.assert_array_equal(weights(fresh), weights(model))


def test_early_stopping_takes_the_best():
    x, y, logits, _ = task(100)
    other = task(300)[:2]
    model, opt = student()
    opt.param_groups[0]["lr"] = 0.3
    distiller = cr.distill.Distiller(model, logits, opt)
    history = distiller.fit(x, y, epochs=200, validation=other, patience=3)
    assert len(history) < 200
    accuracy = np.mean(model(other[0]).argmax(axis=1) == other[1])
    assert accuracy == max(epoch.accuracy for epoch in history)


def test_optimizers_of_another_model():
    student, other = cr.nn.Linear(4, 3, rng=0), cr.nn.Linear(4, 3, rng=1)
    teacher = np.zeros((8, 3), np.float32)
    for opt in (
        cr.optim.Adam(other.params),
        cr.optim.Adam([{"params": other.weight}, {"params": [other.bias]}]),
        cr.optim.Adam(student.copy().params),
        cr.distributed.ShardedOptimizer(cr.optim.Adam, other.params),
    ):
        with pytest.raises(ValueError, match="optimizer must have parameters of the student"):
            cr.distill.Distiller(student, teacher, opt)
    with pytest.raises(ValueError, match="optimizer must have parameters of the student"):
        cr.distributed.DataParallelDistiller(student, teacher, opt)


def test_optimizers_of_some_or_of_views_of_the_parameters():
    flat = np.zeros(15, np.float32)
    student = cr.nn.Linear.from_arrays(flat[:12].reshape(3, 4), flat[12:])
    teacher = np.zeros((8, 3), np.float32)

    class Own:
        """A user's: what it trains is not known."""

        param_groups = ({"params": (p for p in student.params.values()), "lr": 0.1},)

        def step(self, grads):
            pass

    class Layer:
        """A user's, without `params`."""

        forward = backward = grads = None

    for opt in (
        cr.optim.Adam(student.bias),
        cr.optim.Adam([student.weight, np.zeros(3)]),
        # From its second element on: no array begins where another does.
        cr.optim.SGD(flat[1:]),
        Own(),
    ):
        cr.distill.Distiller(student, teacher, opt)
    other = cr.optim.Adam(np.zeros(3))
    cr.distill.Distiller(Layer(), teacher, other)
    cr.distill.Distiller((lambda x: x, lambda dy: [dy]), teacher, other)


def test_bad_distillers(tmp_path):
    x, y, logits, _ = task()
    model, opt = student()
    make = functools.partial(cr.distill.Distiller, model, logits, opt)
    for kwargs, error, message in [
        ({"temperature": 0}, ValueError, "temperature must be"),
        ({"temperature": lambda step: -1}, ValueError, "temperature must be"),
        ({"alpha": 2}, ValueError, "alpha must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"rng": -1}, ValueError, "rng must be at least 0"),
        ({"loss": 3}, TypeError, "loss must be callable"),
    ]:
        with pytest.raises(error, match=message):
            make(**kwargs)
    with pytest.raises(TypeError, match="student must have forward"):
        cr.distill.Distiller(3, logits, opt)
    with pytest.raises(TypeError, match="pair"):
        cr.distill.Distiller((print,), logits, opt)
    with pytest.raises(TypeError, match="teacher must be callable"):
        cr.distill.Distiller(model, "teacher", opt)
    with pytest.raises(ValueError, match="teacher must not be an empty list"):
        cr.distill.Distiller(model, [], opt)
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        cr.distill.Distiller(model, logits, model)
    for kwargs, error, message in [
        ({"y": y[:5]}, ValueError, "y must have the shape"),
        ({"y": y.astype(float)}, TypeError, "y must hold integers"),
        ({"y": None, "hard_epochs": 1}, ValueError, "y must be given"),
        ({"y": None}, ValueError, "labels must be given unless alpha is 1"),
        ({"x": x[:7], "y": y[:7]}, ValueError, "teacher must have the 7 rows of x, got 400"),
        ({"x": x[:0], "y": y[:0]}, ValueError, "at least one row"),
        ({"epochs": -1}, ValueError, "epochs must be at least 0"),
        ({"patience": 1}, ValueError, "patience needs validation"),
    ]:
        with pytest.raises(error, match=message):
            make().fit(**{"x": x, "y": y, "epochs": 1, **kwargs})


def test_bad_checkpoints(tmp_path):
    x, y, logits, _ = task()
    model, opt = student()
    make = functools.partial(cr.distill.Distiller, model, logits, opt)
    path = tmp_path / "run"
    distiller = make()
    distiller.fit(x, y, epochs=1, checkpoint=path)
    before = weights(model)
    with pytest.raises(ValueError, match="must have seed 1, got 0"):
        make(rng=1).fit(x, y, epochs=2, checkpoint=path)
    other = cr.nn.Linear(6, 4, rng=0)
    with pytest.raises(ValueError, match="holds no distillation of such a student"):
        cr.distill.Distiller(other, logits, cr.optim.Adam(other.params)).load(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        make().load(path)
    cr.optim.Adam(other.params).save(path)
    with pytest.raises(ValueError, match=r"must have format 'compressrs.distiller'"):
        make().load(path)
    np.testing.assert_array_equal(weights(model), before)


def test_a_loss_that_is_nan_ends_the_training():
    x, y, logits, _ = task()
    model, opt = student()
    logits = np.where(np.arange(400)[:, None] == 7, np.nan, logits)
    with (
        pytest.warns(RuntimeWarning, match="the loss is NaN"),
        pytest.raises(FloatingPointError, match="the loss of epoch 0 is NaN"),
    ):
        cr.distill.Distiller(model, logits, opt).fit(x, y, epochs=2)


def test_progress_is_shown(capsys, tmp_path, data):
    x, y, logits, _ = task()
    model, opt = student()
    cr.distill.Distiller(model, logits, opt).fit(x, y, epochs=2, progress=True)
    assert "soft" in capsys.readouterr().err
    write(tmp_path / "t", data, progress=True)
    assert "teacher" in capsys.readouterr().err


@pytest.mark.parametrize("stop_after", [1, 3])
def test_pruner_averages_and_running_means_are_part_of_checkpoints(tmp_path, stop_after):
    x, y, logits, _ = task()

    def make(after_step=None, seed=0):
        model = cr.nn.Sequential(
            cr.nn.Linear(6, 8, rng=seed), cr.nn.BatchNorm(8), cr.nn.Dropout(0.1, rng=seed),
            cr.nn.Linear(8, 4, rng=seed),
        )  # fmt: skip
        opt = cr.optim.Adam(model.params, lr=0.02)
        ema = cr.optim.EMA(model.params, 0.9)
        pruner = cr.prune.Pruner(
            [model[3].weight, model[0].weight],
            cr.prune.CubicSchedule(final=0.5, end=40),
            cr.prune.Movement(),
            optimizer=opt,
        )
        parts = {"pruner": pruner, "ema": ema, "after_step": after_step}
        scheduler = cr.optim.lr_scheduler.CosineAnnealingLR(opt, 60)
        distiller = cr.distill.Distiller(model, logits, opt, scheduler=scheduler, **parts)
        return distiller, model, ema, pruner

    fit = {"epochs": 3, "hard_epochs": 1, "validation": (x, y), "patience": 3}
    whole, model, ema, pruner = make()
    whole.fit(x, y, **fit)
    assert pruner.sparsity > 0.4 and model.training

    def crash(distiller):
        if distiller.step_count == stop_after * 13 + 5:
            raise KeyboardInterrupt

    broken = make(crash)[0]
    with pytest.raises(KeyboardInterrupt):
        broken.fit(x, y, checkpoint=tmp_path / "run", **fit)
    # Taken back to the epoch's start.
    assert broken.step_count == stop_after * 13
    seen = []
    resumed, model2, ema2, pruner2 = make(seed=9)
    resumed._after_epoch = lambda distiller, epoch: seen.append(epoch)
    assert resumed.fit(x, y, checkpoint=tmp_path / "run", **fit) == whole.history
    assert seen == whole.history[stop_after:]
    for name, array in model.state_dict().items():
        if not name.endswith("seed"):
            np.testing.assert_array_equal(array, model2.state_dict()[name])
    for a, b in zip(ema._averages + pruner.masks, ema2._averages + pruner2.masks, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_rows():
    x, y, logits, _ = task()
    weight = (np.arange(400) < 300).astype(float)
    model, opt = student()
    cr.distill.Distiller(model, logits, opt, batch_size=400).fit(
        x, y, epochs=3, sample_weight=weight
    )
    other, opt = student()
    cr.distill.Distiller(other, logits[:300], opt, batch_size=400).fit(x[:300], y[:300], epochs=3)
    np.testing.assert_allclose(weights(model), weights(other), rtol=1e-4, atol=1e-6)
    for bad in (weight[:-1], -weight):
        with pytest.raises(ValueError, match="sample_weight must hold 400 numbers"):
            cr.distill.Distiller(other, logits, opt).fit(x, y, epochs=1, sample_weight=bad)
    for kwargs, message in (
        ({"pruner": 3}, "pruner must have state_dict"),
        ({"after_step": 3}, "after_step must be callable"),
    ):
        with pytest.raises(TypeError, match=message):
            cr.distill.Distiller(other, logits, opt, **kwargs)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(0.0, "must not be 0 in all rows"), (np.inf, "finite"), (np.nan, "finite"), (-1.0, "finite")],
)
def test_weights_of_rows_that_leave_no_mean(weights, message):
    x = np.ones((40, 3), np.float32)
    student = cr.nn.Linear(3, 2, rng=0)
    distiller = cr.distill.Distiller(
        student, lambda rows: rows[:, :2], cr.optim.SGD(student.params), alpha=1.0
    )
    with pytest.raises(ValueError, match=message):
        distiller.fit(x, epochs=1, sample_weight=np.full(40, weights))
