"""Files of runs, optimizers, models and matrices with bytes changed, removed and inserted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from attacks.programs._tools import attack, report


def main() -> None:
    """Load damaged files: an error, or a state that passes all checks."""
    import compressrs as cr

    rng = np.random.default_rng(0)
    model = cr.nn.Sequential(cr.nn.Linear(6, 5, rng=0), cr.nn.ReLU(), cr.nn.Linear(5, 3, rng=1))
    opt = cr.optim.Adam(model.params)
    run = cr.TrainState(model=model, optimizer=opt, rng=np.random.default_rng(1))
    matrix = cr.sparse.CSRMatrix.from_dense(rng.standard_normal((20, 30)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        run.save(path / "run")
        opt.save(path / "opt")
        model.save(path / "model")
        cr.sparse.save_npz(path / "matrix.npz", matrix)
        names = ("run", "opt", "model", "matrix.npz")
        good = {name: (path / name).read_bytes() for name in names}
        loads: dict[str, Callable[[Path], object]] = {
            "run": run.load,
            "opt": opt.load,
            "model": cr.nn.load,
            "matrix.npz": cr.sparse.load_npz,
        }

        def damage() -> None:
            name = names[int(rng.integers(len(names)))]
            data = bytearray(good[name])
            at = int(rng.integers(len(data)))
            kind = int(rng.integers(4))
            if kind == 0:
                data[at] ^= int(rng.integers(1, 256))
            elif kind == 1:
                del data[at:]
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 9))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            file = path / ("damaged-" + name)
            file.write_bytes(data)
            loads[name](file)

        report(attack(damage, least=10), refused=True)
        for name in names:
            loads[name](path / name)


if __name__ == "__main__":
    main()
