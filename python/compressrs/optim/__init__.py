"""Optimizers that update NumPy arrays in place.

Names, argument order, defaults and semantics are those of PyTorch (of Optax for
`Lion` and `Lamb`); gradients are passed to `step`. Gradient descent and stochastic
gradient descent are both `SGD`: they differ only in the gradient that is passed.
"""

from compressrs._core import NonFiniteGradientError
from compressrs.optim import lr_scheduler
from compressrs.optim.accumulate import GradientAccumulator
from compressrs.optim.adadelta import Adadelta
from compressrs.optim.adafactor import Adafactor
from compressrs.optim.adagrad import Adagrad
from compressrs.optim.adam import Adam
from compressrs.optim.adamax import Adamax
from compressrs.optim.adamw import AdamW
from compressrs.optim.ademamix import AdEMAMix
from compressrs.optim.asgd import ASGD
from compressrs.optim.base import Optimizer
from compressrs.optim.clip import clip_grad_norm_, clip_grad_value_
from compressrs.optim.ema import EMA
from compressrs.optim.global_search import Found, cma_es, flat_function, restarts, scipy_minimizer
from compressrs.optim.interop import sklearn_mlp, to_torch
from compressrs.optim.lamb import Lamb
from compressrs.optim.lbfgs import LBFGS
from compressrs.optim.lion import Lion
from compressrs.optim.lookahead import Lookahead
from compressrs.optim.lr_range import LRRange, lr_range_test
from compressrs.optim.momentum import Momentum
from compressrs.optim.muon import Muon
from compressrs.optim.nadam import NAdam
from compressrs.optim.prodigy import Prodigy
from compressrs.optim.radam import RAdam
from compressrs.optim.rmsprop import RMSprop
from compressrs.optim.rows import RowGradient
from compressrs.optim.rprop import Rprop
from compressrs.optim.sam import SAM
from compressrs.optim.schedule_free import ScheduleFree
from compressrs.optim.sgd import SGD
from compressrs.optim.shampoo import Shampoo
from compressrs.optim.soap import SOAP
from compressrs.optim.swa import SWA

__all__ = [
    "ASGD",
    "EMA",
    "LBFGS",
    "SAM",
    "SGD",
    "SOAP",
    "SWA",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Found",
    "GradientAccumulator",
    "LRRange",
    "Lamb",
    "Lion",
    "Lookahead",
    "Momentum",
    "Muon",
    "NAdam",
    "NonFiniteGradientError",
    "Optimizer",
    "Prodigy",
    "RAdam",
    "RMSprop",
    "RowGradient",
    "Rprop",
    "ScheduleFree",
    "Shampoo",
    "clip_grad_norm_",
    "clip_grad_value_",
    "cma_es",
    "flat_function",
    "lr_range_test",
    "lr_scheduler",
    "restarts",
    "scipy_minimizer",
    "sklearn_mlp",
    "to_torch",
]
