"""Distillation: softmax with temperature, losses fused with their gradients, training.

- `softmax`, `log_softmax`, `logsumexp`, along any axis, in place where wanted;
- `kd_loss`: soft targets and labels in one sweep, `dkd_loss`: decoupled, `dist_loss`:
  by correlation;
- `hint_loss`, `attention_loss`, `rkd_distance_loss`, `rkd_angle_loss`: on features;
- `top_k`, `TopK`, `TeacherCache`: what is kept of a teacher, in memory and on disk;
- `Distiller`: the training, `DistilledClassifier`: the same for scikit-learn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compressrs.distill.cache import TeacherCache
from compressrs.distill.distiller import Distiller, Epoch
from compressrs.distill.features import (
    attention_loss,
    dist_loss,
    hint_loss,
    rkd_angle_loss,
    rkd_distance_loss,
)
from compressrs.distill.kd import dkd_loss, kd_loss
from compressrs.distill.probabilities import log_softmax, logsumexp, softmax
from compressrs.distill.teachers import TopK, top_k

if TYPE_CHECKING:
    from compressrs.distill.estimator import DistilledClassifier
    from compressrs.distill.regressor import DistilledRegressor

__all__ = [
    "DistilledClassifier",
    "DistilledRegressor",
    "Distiller",
    "Epoch",
    "TeacherCache",
    "TopK",
    "attention_loss",
    "dist_loss",
    "dkd_loss",
    "hint_loss",
    "kd_loss",
    "log_softmax",
    "logsumexp",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "softmax",
    "top_k",
]


def __dir__() -> list[str]:
    return [*__all__]


def __getattr__(name: str) -> Any:
    # Only who asks for the estimators needs scikit-learn.
    modules = {"DistilledClassifier": "estimator", "DistilledRegressor": "regressor"}
    if name in modules:
        try:
            module = import_module(f"{__name__}.{modules[name]}")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{name} needs scikit-learn ({error}): pip install 'compressrs[demo]'"
            ) from None
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
