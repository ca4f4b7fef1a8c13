"""Signals whose handlers raise, save and step, in the middle of everything."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from attacks.programs._tools import attack, report


class Interrupt(Exception):
    """What the handler raises."""


def main() -> None:
    """Interrupt training, saving and loading; the last file must always load."""
    import compressrs as cr

    model = cr.nn.Sequential(cr.nn.Linear(30, 20, rng=0), cr.nn.ReLU(), cr.nn.Linear(20, 3, rng=1))
    opt = cr.optim.Adam(model.params)
    pruner = cr.prune.MagnitudePruner(
        model[0].weight, cr.prune.CubicSchedule(end=10**6), optimizer=opt
    )
    run = cr.TrainState(model=model, optimizer=opt, ema=cr.optim.EMA(model.params), pruner=pruner)
    x = np.ones((4, 30), np.float32)
    seen = {"interrupts": 0}
    ticks = iter(range(10**9))

    def handler(*_: Any) -> None:
        seen["interrupts"] += 1
        if next(ticks) % 3:
            raise Interrupt
        try:
            opt.state_dict()
            opt.step(model.grads)
        except RuntimeError:  # in the middle of a change
            pass

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        run.save(path)

        def train() -> None:
            try:
                model.backward(model(x))
                opt.step(model.grads)
                pruner.step()
                run.parts["ema"].update()
                run.save(path)
                run.load(path)
            except Interrupt:
                pass

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.003, 0.0017)
        try:
            counts = attack(train)
        except Interrupt:
            counts = {"done": 1, "refused": 0}
        finally:
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, before)
                    break
                except Interrupt:
                    continue
        assert seen["interrupts"]
        run.load(path)
        opt.step(model.grads)
        assert [file.name for file in Path(folder).iterdir() if not file.name.startswith(".")] == [
            "run"
        ]
    report(counts, done=True)


if __name__ == "__main__":
    main()
