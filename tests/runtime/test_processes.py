"""Threads, forks, instruction sets, and settings from the environment."""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from ml_dtypes import bfloat16

import compressrs as cr

N = 300_000  # large enough for the pool


def everything() -> str:
    """Return a digest of every kernel's result in both precisions."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        for cls, kwargs in (
            (cr.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
            (cr.optim.SGD, {}),
            (cr.optim.Momentum, {}),
            (cr.optim.Adam, {"amsgrad": True, "weight_decay": 0.1}),
            (cr.optim.AdamW, {}),
            (cr.optim.Adagrad, {}),
            (cr.optim.RMSprop, {"centered": True, "momentum": 0.9}),
            (cr.optim.Adadelta, {}),
            (cr.optim.Adamax, {}),
            (cr.optim.NAdam, {}),
            (cr.optim.RAdam, {"betas": (0.9, 0.7)}),
            (cr.optim.Lion, {}),
            (cr.optim.Lion, {"cautious": True}),
            (cr.optim.Adam, {"cautious": True, "amsgrad": True}),
            (cr.optim.RAdam, {"cautious": True}),
            (cr.optim.NAdam, {"cautious": True}),
            (cr.optim.AdEMAMix, {"warmup": 2}),
            (cr.optim.Prodigy, {"d0": 1e-3}),
            (cr.optim.Rprop, {}),
            (cr.optim.ASGD, {}),
            (cr.optim.Lamb, {}),
            (cr.optim.Adafactor, {}),
            (cr.optim.Muon, {}),
        ):
            shapes = [(1, 1), (17, 1), (10, 100), (500, N // 500)]
            if cls is cr.optim.Muon:
                shapes[-1] = (70, 200)
            p = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
            opt = cls(p, lr=0.01, **kwargs)
            opt.set_masks([None, None, rng.random((10, 100)) < 0.5, rng.random(shapes[-1]) < 0.5])
            for _ in range(3):
                norm = opt.step(
                    [rng.standard_normal(w.shape).astype(dtype) for w in p], max_grad_norm=1.0
                )
                digest.update(np.float64(norm).tobytes())
            for w in p:
                digest.update(w.tobytes())
        for cls in (cr.optim.Adam, cr.optim.RMSprop, cr.optim.Lamb):
            for state_dtype, precision in (("bfloat16", "stochastic"), ("int8", "kahan")):
                # Blocks alone, with a rest, masked; of weights in half precision too.
                p = [rng.standard_normal(n).astype(dtype) for n in (N, 4096, 5000)]
                p += [rng.standard_normal(N).astype(half) for half in (np.float16, bfloat16)]
                opt = cls(p, lr=0.01, state_dtype=state_dtype, precision=precision, seed=5)
                opt.set_masks([None, None, rng.random(5000) < 0.5, None, None])
                for _ in range(3):
                    opt.step([rng.standard_normal(w.shape).astype(w.dtype) for w in p])
                for w in p:
                    digest.update(w.tobytes())
        table = rng.standard_normal((3000, 70)).astype(dtype)
        opt = cr.optim.Adam(table)
        for _ in range(2):
            rows, values = rng.integers(0, 3000, 2000), rng.standard_normal((2000, 70))
            opt.step(cr.optim.RowGradient(rows, values.astype(dtype)), max_grad_norm=1.0)
        digest.update(table.tobytes())
        w = rng.standard_normal((700, 900)).astype(dtype)
        mask = cr.prune.magnitude_mask(w, sparsity=0.9)
        digest.update(mask.tobytes())
        for result in layers(dtype):
            digest.update(result.tobytes())
        for result in pruning(w, rng.standard_normal(w.shape).astype(dtype)):
            digest.update(np.asarray(result).tobytes())
        a = cr.sparse.CSRMatrix.from_dense(np.where(mask, w, dtype(0)))
        b = cr.sparse.BSRMatrix.from_dense(w[:, :896], (4, 4), mask=mask[:, :896])
        shuffled = a.indices.copy()
        for row in range(700):
            shuffled[a.indptr[row] : a.indptr[row + 1]] = rng.permutation(
                a.indices[a.indptr[row] : a.indptr[row + 1]]
            )
        c = cr.sparse.CSRMatrix((a.data, shuffled, a.indptr), a.shape)
        for n in (1, 8, 333):
            x, y = (rng.standard_normal((k, n)).astype(dtype) for k in (900, 700))
            bias = rng.standard_normal(700).astype(dtype)
            for product in (a.matmul(x, bias=bias, relu=True), x.T @ a.T, a.T @ y, y.T @ a):
                digest.update(product.tobytes())
            for product in (cr.sparse.sddmm(a, y, x.T), b @ x[:896], y.T @ b, c @ x, c.T @ y):
                digest.update(product.tobytes())
        for n, classes in ((50, 5001), (333, 10), (70, 65)):
            z, t = (20 * rng.standard_normal((2, n, classes))).astype(dtype)
            labels = rng.integers(0, classes, n)
            for result in distillation(z, t, labels):
                digest.update(np.asarray(result).tobytes())
    for result in quantized_layers():
        digest.update(result.tobytes())
    return digest.hexdigest()


def pruning(w, g):
    """Yield the results of the kernels of cr.prune."""
    p = cr.prune
    scores = p.Movement(), p.Snip(), p.Taylor()
    for score in scores:
        score.update(w, g)
        score.update(g, w[::-1])
        yield score.scores(w)
    moved = scores[0].scores(w)
    yield from p.masks([moved, g], 0.7)
    yield p.masks(moved, 0.7, "row")
    for pair in ((2, 4), (3, 10)):
        yield p.nm_mask(w, *pair)
    for norm in (1, 2, np.inf, "sum"):
        yield p.block_mask(w, (4, 4), 0.5, norm)
        yield p.neuron_mask(w, 1, 0.5, norm)
    columns = slice(100)
    for gram in (False, True):
        statistics = p.InputStatistics(100, gram=gram)
        statistics.update(g[:, columns])
        yield statistics.norms
    for kwargs in ({"sparsity": 0.7}, {"nm": (2, 4)}):
        part = w[:, columns].copy()
        yield p.sparsegpt(part, statistics, block=16, **kwargs)
        yield part


def distillation(z, t, labels):
    """Yield the results of all functions of cr.distill."""
    d = cr.distill
    for axis in (0, 1):
        yield from (f(z, 2.0, axis) for f in (d.softmax, d.log_softmax, d.logsumexp))
    for divergence in ("forward_kl", "reverse_kl", "js"):
        yield from d.kd_loss(z, t, 3.0, labels, 0.5, divergence=divergence, label_smoothing=0.1)
    yield from d.kd_loss(z, [t, z], 3.0)
    yield from d.kd_loss(z, t, 3.0, standardize=True)
    yield from d.kd_loss(z, d.top_k(t, 9, 3.0), 3.0)
    yield from d.dkd_loss(z, t, 4.0, labels)
    yield from d.dist_loss(z, t, 20.0)
    yield from d.hint_loss(z, t)
    yield from d.attention_loss(z[:, None], t[:, None])
    yield from d.rkd_distance_loss(z, t)
    yield from d.rkd_angle_loss(z[:30], t[:30])
    half = z.astype(np.float16)
    yield from d.kd_loss(half, half[::-1], 3.0)


def layers(dtype):
    """Yield what all layers with kernels of their own give, forward and backward."""
    nn, rng = cr.nn, np.random.default_rng(1)
    images, rows = (rng.standard_normal(s).astype(dtype) for s in ((3, 6, 21, 18), (70, 40)))
    tokens = rng.standard_normal((3, 11, 40)).astype(dtype)
    for layer, x in (
        (nn.Conv2d(6, 26, 3, padding=1, dtype=dtype, rng=0), images),
        (nn.Conv2d(6, 4, (3, 2), stride=(2, 3), groups=2, dtype=dtype, rng=0), images),
        (nn.BatchNorm(6, dtype=dtype), images),
        (nn.BatchNorm(40, dtype=dtype), rows),
        (nn.MaxPool(2), images),
        (nn.AvgPool(3, stride=1, padding=1), images),
        (nn.Linear(40, 70, dtype=dtype, rng=0), rows),
        (nn.LayerNorm(40, dtype=dtype), rows),
        (nn.GELU(), rows),
        (nn.GELU("tanh"), rows),
        (nn.SiLU(), rows),
        (nn.Softmax(), rows),
        (nn.MultiHeadAttention(40, 5, causal=True, dtype=dtype, rng=0), tokens),
    ):
        y = layer(x)
        yield from (y, layer.backward(y), *layer.grads.values())
    table = nn.Embedding(9, 40, dtype=dtype, rng=0)
    table(np.arange(70) % 9)
    table.backward(rows)
    yield table.grads["weight"]


def quantized_layers():
    """Yield what layers with codes give for inputs in codes."""
    nn, rng = cr.nn, np.random.default_rng(1)
    images, rows = rng.standard_normal((3, 64, 11, 9)), rng.standard_normal((70, 40))
    images, rows = images.astype(np.float32), rows.astype(np.float32)
    conv, linear = nn.Conv2d(64, 140, 3, padding=1, groups=2, rng=0), nn.Linear(40, 70, rng=0)
    for bits, group in ((8, None), (4, 32)):
        of_groups = {"granularity": "group", "group_size": group} if group else {}
        scheme = cr.quantize.Scheme(bits=bits, symmetric=False, **of_groups)
        for fixed in (None, {"activation_scale": 0.03, "activation_zero_point": -9}):
            options = {"input": "int8", **(fixed or {})}
            yield nn.QuantizedConv2d.from_conv(conv, scheme, **options)(images)
            yield nn.QuantizedLinear.from_linear(linear, scheme, **options)(rows)


def in_child(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process with these settings of compressrs instead of the test run's."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith("COMPRESSRS_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**outside, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_same_bits_for_every_instruction_set_and_number_of_threads():
    code = "from tests.runtime.test_processes import everything; print(everything())"
    here = everything()
    for level in cr._core.simd_levels():
        for threads in ("1", "3"):
            child = in_child(code, COMPRESSRS_SIMD=level, COMPRESSRS_NUM_THREADS=threads)
            assert child.stdout.strip() == here, (level, threads, child.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("COMPRESSRS_SIMD", "avx9", "COMPRESSRS_SIMD must be one of"),
        ("COMPRESSRS_NUM_THREADS", "0", "COMPRESSRS_NUM_THREADS must be a whole number from 1"),
        ("COMPRESSRS_NUM_THREADS", "many", 'got "many"'),
    ],
)
def test_wrong_settings_are_reported_at_import(variable, value, message):
    child = in_child("import compressrs", **{variable: value})
    assert child.returncode == 1
    assert "ImportError" in child.stderr
    assert message in child.stderr


@pytest.mark.parametrize("installed", [False, True])
def test_the_command_reports_wrong_settings_in_a_line(installed, tmp_path):
    # As pip writes it.
    path = tmp_path / "compressrs"
    path.write_text("import sys\nfrom compressrs.cli import main\nsys.exit(main())\n")
    command = [str(path)] if installed else ["-m", "compressrs"]
    child = subprocess.run(
        [sys.executable, *command, "config"],
        env={**os.environ, "COMPRESSRS_SIMD": "avx9"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 2
    assert child.stderr.startswith("compressrs: COMPRESSRS_SIMD must be one of")
    assert len(child.stderr.splitlines()) == 1


def test_the_environment_sets_the_number_of_threads():
    child = in_child(
        "import compressrs as c; print(c.get_num_threads())", COMPRESSRS_NUM_THREADS="3"
    )
    assert child.stdout.strip() == "3"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_the_affinity_mask_counts():
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "import compressrs as c; print(c.get_num_threads())"
    )
    assert in_child(code).stdout.strip() == "1"


@pytest.mark.parametrize(
    ("n", "error"), [(0, ValueError), (-3, ValueError), (10**30, ValueError), (1.5, TypeError)]
)
def test_set_num_threads_refuses(n, error):
    before = cr.get_num_threads()
    with pytest.raises(error, match="n must be"):
        cr.set_num_threads(n)
    assert cr.get_num_threads() == before


def test_threadpoolctl_governs_the_pool():
    before = cr.get_num_threads()
    with threadpoolctl.threadpool_limits(1, user_api="compressrs"):
        assert cr.get_num_threads() == 1
        assert "compressrs" in {lib["user_api"] for lib in threadpoolctl.threadpool_info()}
    assert cr.get_num_threads() == before


def step_in_child(queue):
    p = np.ones(N, np.float32)
    opt = cr.optim.Adam(p, lr=0.1)
    for _ in range(5):
        opt.step(np.ones(N, np.float32))
    queue.put(float(p.sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_work_after_the_parent_used_its_pool():
    cr.set_num_threads(4)
    try:
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        step_in_child(queue)
        expected = queue.get(timeout=60)
        children = [context.Process(target=step_in_child, args=(queue,)) for _ in range(20)]
        for child in children:
            child.start()
        results = [queue.get(timeout=60) for _ in children]
        for child in children:
            child.join(timeout=60)
            assert child.exitcode == 0
        assert results == [expected] * 20
        step_in_child(queue)
        assert queue.get(timeout=60) == expected
    finally:
        cr.set_num_threads(len(os.sched_getaffinity(0)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_children_of_a_process_whose_threads_look_for_work_have_threads_of_their_own():
    """A fork right after a kernel, while threads are awake that the child does not have."""
    code = (
        "import os, threading, compressrs as c, numpy as np\n"
        f"p, g = np.ones({N}, 'f4'), np.ones({N}, 'f4')\n"
        "opt = c.optim.Adam(p)\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "for _ in range(30):\n"
        "    opt.step(g)\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        alone = threads() == 1\n"
        "        for _ in range(3): opt.step(g)\n"
        "        os._exit(not alone or threads() != 2)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "opt.step(g)\n"
    )
    child = in_child(code, COMPRESSRS_NUM_THREADS="2", OPENBLAS_NUM_THREADS="1")
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_an_optimizer_that_another_thread_steps_at_the_fork_is_not_locked_in_the_child():
    p = np.ones(3_000_000, np.float32)
    opt = cr.optim.Adam(p)
    g = np.ones_like(p)
    stop = threading.Event()

    def keep_stepping():
        while not stop.is_set():
            opt.step(g)

    thread = threading.Thread(target=keep_stepping)
    thread.start()
    try:
        context = multiprocessing.get_context("fork")
        for _ in range(5):
            child = context.Process(target=opt.step, args=(g,))
            child.start()
            child.join(timeout=60)
            assert child.exitcode == 0
    finally:
        stop.set()
        thread.join()


def test_the_number_of_threads_changes_while_others_step():
    """Pools end and begin while their threads work, look for work and sleep."""
    before = cr.get_num_threads()
    stop = threading.Event()
    arrays = [np.ones(N, np.float32) for _ in range(3)]

    def work(p):
        opt, g = cr.optim.SGD(p, lr=1.0), np.ones_like(p)
        while not stop.is_set():
            opt.step(g)
            np.testing.assert_array_equal(p, p[0])
        results.append(opt.state[0]["step"] + p[0] == 1)

    results: list[bool] = []
    threads = [threading.Thread(target=work, args=(p,)) for p in arrays]
    try:
        for thread in threads:
            thread.start()
        for n in [1, 2, 3, 4] * 25:
            cr.set_num_threads(n)
            stop.wait(0.002)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=120)
        cr.set_num_threads(before)
    assert results == [True] * 3


def test_eight_threads_with_their_own_optimizers():
    def work(seed, results):
        rng = np.random.default_rng(seed)
        p = rng.standard_normal(N).astype(np.float32)
        opt = cr.optim.Adam(p)
        for _ in range(10):
            opt.step(rng.standard_normal(N).astype(np.float32))
        results[seed] = p

    together, alone = {}, {}
    threads = [threading.Thread(target=work, args=(seed, together)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for seed in range(8):
        work(seed, alone)
        np.testing.assert_array_equal(together[seed], alone[seed])


@pytest.mark.parametrize("n", [100, N])
def test_eight_threads_stepping_the_same_optimizer_take_turns(n):
    g = np.ones(n, np.float32)
    p, q = np.ones(n, np.float32), np.ones(n, np.float32)
    shared, single = cr.optim.Adam(p), cr.optim.Adam(q)

    def work():
        for _ in range(10):
            shared.step(g)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    for _ in range(80):
        single.step(g)
    assert shared.state[0]["step"] == 80
    np.testing.assert_array_equal(p, q)


def test_the_gil_is_released():
    """Python code in another thread runs while a kernel runs."""
    z = np.zeros((2000, 5000))
    out = np.empty_like(z)
    done = threading.Event()
    ticks = 0

    def work():
        for _ in range(5):
            cr.distill.softmax(z, out=out)
        done.set()

    switch = sys.getswitchinterval()
    # If the GIL were held throughout, another thread would wait this long.
    sys.setswitchinterval(60)
    thread = threading.Thread(target=work)
    try:
        thread.start()
        while not done.is_set():
            ticks += 1
            done.wait(1e-4)
    finally:
        sys.setswitchinterval(switch)
        thread.join()
    assert ticks > 1


@pytest.mark.parametrize("threads", [2, 3])
def test_clean_exit_after_use(threads):
    code = (
        f"import compressrs as c, numpy as np; c.set_num_threads({threads})\n"
        f"c.optim.Adam(np.ones({N})).step(np.ones({N}))"
    )
    child = in_child(code)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
