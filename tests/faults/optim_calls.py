"""Valid arguments of the public callables of `optim` and `optim.lr_scheduler`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from compressrs import optim
from compressrs.optim import lr_scheduler

Arguments = Callable[[], dict[str, Any]]
#: What makes an object, the name of its method, and valid arguments.
Method = tuple[Callable[[], Any], str, Arguments]


def w() -> Any:
    return np.random.default_rng(0).standard_normal((8, 16))


def sgd() -> Any:
    return optim.SGD(w(), lr=0.1, momentum=0.5)


def _optimizer(**own: Any) -> Arguments:
    return lambda: {
        "params": w(),
        "lr": 0.1,
        "weight_decay": 0.1,
        "maximize": False,
        "state_dtype": "float32",
        "precision": "nearest",
        "seed": 0,
        **own,
    }


def _schedule(**own: Any) -> Arguments:
    return lambda: {"optimizer": sgd(), "last_epoch": -1, **own}


def _steps(optimizer: Any) -> list[Any]:
    return [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]


def _sequence() -> dict[str, Any]:
    optimizer = sgd()
    return dict(optimizer=optimizer, schedulers=_steps(optimizer), milestones=[3], last_epoch=-1)


def _chain() -> dict[str, Any]:
    optimizer = sgd()
    return dict(schedulers=_steps(optimizer), optimizer=optimizer)


def _without(arguments: Arguments, *names: str) -> Arguments:
    return lambda: {key: value for key, value in arguments().items() if key not in names}


def rate(step: float) -> float:
    return 0.5


_BETAS = (0.9, 0.99)
_NESTEROV = dict(momentum=0.5, nesterov=True)

OPTIMIZERS: dict[str, Arguments] = {
    "ASGD": _optimizer(lambd=1e-4, alpha=0.75, t0=10.0),
    "AdEMAMix": _optimizer(
        betas=(0.9, 0.99, 0.999), alpha=5.0, eps=1e-8, warmup=10.0, cautious=False
    ),
    "Adadelta": _optimizer(rho=0.9, eps=1e-6),
    "Adafactor": _optimizer(beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, beta1=0.9),
    "Adagrad": _optimizer(lr_decay=0.1, initial_accumulator_value=0.1, eps=1e-10),
    "Adam": _optimizer(
        betas=_BETAS, eps=1e-8, amsgrad=True, decoupled_weight_decay=True, cautious=False
    ),
    "AdamW": _optimizer(betas=_BETAS, eps=1e-8, amsgrad=True, cautious=False),
    "Adamax": _optimizer(betas=_BETAS, eps=1e-8),
    "Lamb": _optimizer(betas=_BETAS, eps=1e-6, eps_root=0.0),
    "Lion": _optimizer(betas=_BETAS, cautious=False),
    "Momentum": _optimizer(**_NESTEROV),
    "Muon": _optimizer(
        **_NESTEROV, ns_coefficients=(3.4, -4.7, 2.0), eps=1e-7, ns_steps=5, adjust_lr_fn=None
    ),
    "NAdam": _optimizer(
        betas=_BETAS, eps=1e-8, momentum_decay=0.004, decoupled_weight_decay=True, cautious=False
    ),
    "Prodigy": _optimizer(
        betas=_BETAS,
        eps=1e-8,
        decoupled_weight_decay=True,
        use_bias_correction=False,
        safeguard_warmup=False,
        d0=1e-6,
        d_coef=1.0,
        growth_rate=2.0,
    ),
    "RAdam": _optimizer(betas=_BETAS, eps=1e-8, decoupled_weight_decay=True, cautious=False),
    "RMSprop": _optimizer(alpha=0.9, eps=1e-8, momentum=0.5, centered=True),
    "Rprop": _without(_optimizer(etas=(0.5, 1.2), step_sizes=(1e-6, 50)), "weight_decay"),
    "SGD": _optimizer(**_NESTEROV, dampening=0.0),
    "SOAP": _optimizer(
        betas=_BETAS, shampoo_beta=0.9, eps=1e-8, precondition_frequency=2, block_size=4
    ),
    "Shampoo": _optimizer(
        betas=_BETAS,
        eps=1e-8,
        matrix_eps=1e-12,
        precondition_frequency=2,
        block_size=4,
        grafting="adam",
    ),
}

SCHEDULES: dict[str, Arguments] = {
    "ChainedScheduler": _chain,
    "ConstantLR": _schedule(factor=0.5, total_iters=5),
    "CosineAnnealingLR": _schedule(T_max=5, eta_min=0.0),
    "CosineAnnealingWarmRestarts": _schedule(T_0=5, T_mult=2, eta_min=0.0),
    "CyclicLR": _schedule(
        base_lr=0.1,
        max_lr=1.0,
        step_size_up=3,
        step_size_down=None,
        mode="triangular",
        gamma=1.0,
        scale_fn=None,
        scale_mode="cycle",
        cycle_momentum=True,
        base_momentum=0.8,
        max_momentum=0.9,
    ),
    "ExponentialLR": _schedule(gamma=0.9),
    "LambdaLR": _schedule(lr_lambda=rate),
    "LinearLR": _schedule(start_factor=0.5, end_factor=1.0, total_iters=5),
    "MultiStepLR": _schedule(milestones=[1, 3], gamma=0.1),
    "MultiplicativeLR": _schedule(lr_lambda=rate),
    "OneCycleLR": _schedule(
        max_lr=1.0,
        total_steps=9,
        epochs=None,
        steps_per_epoch=None,
        pct_start=0.3,
        anneal_strategy="cos",
        cycle_momentum=True,
        base_momentum=0.85,
        max_momentum=0.95,
        div_factor=25.0,
        final_div_factor=1e4,
        three_phase=False,
    ),
    "PolynomialLR": _schedule(total_iters=5, power=1.0),
    "ReduceLROnPlateau": _without(
        _schedule(
            mode="min",
            factor=0.1,
            patience=10,
            threshold=1e-4,
            threshold_mode="rel",
            cooldown=0,
            min_lr=0.0,
            eps=1e-8,
        ),
        "last_epoch",
    ),
    "SequentialLR": _sequence,
    "StepLR": _schedule(step_size=2, gamma=0.1),
}

CALLS: dict[str, Arguments] = {
    **{f"optim.{name}": arguments for name, arguments in OPTIMIZERS.items()},
    **{f"optim.lr_scheduler.{name}": arguments for name, arguments in SCHEDULES.items()},
    "optim.EMA": lambda: dict(params=w(), decay=0.9, warmup=False),
    "optim.Lookahead": lambda: dict(optimizer=sgd(), k=2, alpha=0.5),
    "optim.ScheduleFree": lambda: dict(
        params=w(), make=lambda z: optim.SGD(z, lr=0.1), momentum=0.9, weight_lr_power=2.0
    ),
    "optim.SWA": lambda: dict(params=w()),
    "optim.SAM": lambda: dict(optimizer=sgd(), rho=0.05, adaptive=True),
    "optim.LBFGS": lambda: dict(
        params=w(),
        lr=1.0,
        max_iter=2,
        max_eval=3,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        history_size=3,
        line_search_fn="strong_wolfe",
    ),
    "optim.lr_range_test": lambda: dict(
        optimizer=sgd(), train=lambda: 1.0, low=1e-3, high=1.0, steps=3, progress=False
    ),
    "optim.Found": lambda: dict(loss=1.0, losses=[1.0]),
    "optim.cma_es": lambda: dict(
        loss=lambda: 1.0, params=w(), sigma=0.5, generations=1, population=4, rng=0
    ),
    "optim.flat_function": lambda: dict(evaluate=lambda: (1.0, None), params=w()),
    "optim.restarts": lambda: dict(
        train=lambda: 1.0, params=w(), initialize=lambda rng: None, seeds=[0, 1]
    ),
    "optim.scipy_minimizer": lambda: dict(make=optim.SGD, steps=1, tolerance=0.1),
    "optim.LRRange": lambda: dict(rates=[0.1, 0.2], losses=[2.0, 1.0]),
    "optim.GradientAccumulator": lambda: dict(steps=2),
    "optim.RowGradient": lambda: dict(rows=np.array([1, 0]), values=np.ones((2, 3))),
    "optim.clip_grad_norm_": lambda: dict(
        grads=w(), max_norm=1.0, norm_type=2.0, error_if_nonfinite=True
    ),
    "optim.clip_grad_value_": lambda: dict(grads=w(), clip_value=0.5),
}


def _step() -> dict[str, Any]:
    return dict(grads=w(), max_grad_norm=1.0, grad_scale=1.0, nonfinite="raise")


def _closed() -> dict[str, Any]:
    return dict(closure=lambda: (1.0, w()))


def _made(kind: str) -> Callable[[], Any]:
    return lambda: getattr(optim, kind)(**OPTIMIZERS[kind]())


def _scheduled(kind: str) -> Callable[[], Any]:
    return lambda: getattr(lr_scheduler, kind)(**SCHEDULES[kind]())


def _free() -> Any:
    return optim.ScheduleFree(**CALLS["optim.ScheduleFree"]())


def _ahead() -> Any:
    return optim.Lookahead(sgd(), k=2)


def _plateau() -> Any:
    return lr_scheduler.ReduceLROnPlateau(sgd())


def _loading(make: Callable[[], Any]) -> Method:
    return make, "load_state_dict", lambda: dict(state_dict=make().state_dict())


METHODS: dict[str, Method] = {
    **{f"{kind}.step": (_made(kind), "step", _step) for kind in OPTIMIZERS},
    **{f"{kind}.load_state_dict": _loading(_made(kind)) for kind in OPTIMIZERS},
    **{f"{kind}.load_state_dict": _loading(_scheduled(kind)) for kind in SCHEDULES},
    "SGD.add_param_group": (sgd, "add_param_group", lambda: dict(group={"params": np.ones(3)})),
    "SGD.set_masks": (sgd, "set_masks", lambda: dict(masks=np.ones((8, 16), bool))),
    "SGD.convert_state": (
        sgd,
        "convert_state",
        lambda: dict(state_dtype="bfloat16", precision="nearest"),
    ),
    "EMA.load_state_dict": _loading(lambda: optim.EMA(w())),
    "Lookahead.step": (_ahead, "step", _step),
    "Lookahead.load_state_dict": _loading(_ahead),
    "ScheduleFree.step": (_free, "step", _step),
    "ScheduleFree.load_state_dict": _loading(_free),
    "SWA.load_state_dict": _loading(lambda: optim.SWA(w())),
    "SAM.step": (lambda: optim.SAM(sgd()), "step", _closed),
    "SAM.load_state_dict": _loading(lambda: optim.SAM(sgd())),
    "LBFGS.step": (lambda: optim.LBFGS(w()), "step", _closed),
    "LBFGS.load_state_dict": _loading(lambda: optim.LBFGS(w())),
    "LRRange.plot": (
        lambda: optim.LRRange([0.1, 0.2], [2.0, 1.0]),
        "plot",
        lambda: dict(path=None),
    ),
    "GradientAccumulator.add": (
        lambda: optim.GradientAccumulator(2),
        "add",
        lambda: dict(grads=w()),
    ),
    "RowGradient.dense": (
        lambda: optim.RowGradient([1, 0], np.ones((2, 3))),
        "dense",
        lambda: dict(n=2),
    ),
    "ReduceLROnPlateau.step": (_plateau, "step", lambda: dict(metrics=1.0)),
    "CosineAnnealingWarmRestarts.step": (
        _scheduled("CosineAnnealingWarmRestarts"),
        "step",
        lambda: dict(epoch=1.5),
    ),
}

#: Abstract classes, exceptions, what takes no arguments, and what needs PyTorch.
LEFT_OUT = {
    "optim.NonFiniteGradientError",
    "optim.Optimizer",
    "optim.lr_scheduler.LRScheduler",
    "optim.sklearn_mlp",
    "optim.to_torch",
}

if find_spec("cmaes") is None:
    LEFT_OUT.add("optim.cma_es")
    del CALLS["optim.cma_es"]
