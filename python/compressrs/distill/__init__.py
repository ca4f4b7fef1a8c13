"""Distillation: softmax with temperature, losses fused with their gradients, training.

- `softmax`, `log_softmax`, `logsumexp`, along any axis, in place where wanted;
- `kd_loss`: soft targets and labels in one sweep, `dkd_loss`: decoupled, `dist_loss`:
  by correlation;
- `hint_loss`, `attention_loss`, `rkd_distance_loss`, `rkd_angle_loss`: on features;
- `top_k`, `TopK`, `TeacherCache`: what is kept of a teacher, in memory and on disk;
- `Distiller`: the training, `DistilledClassifier`: the same for scikit-learn.
"""

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

__all__ = [
    "DistilledClassifier",
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
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # Only who asks for the estimator needs scikit-learn.
    if name == "DistilledClassifier":
        try:
            from compressrs.distill.estimator import DistilledClassifier
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"DistilledClassifier needs scikit-learn ({error}): pip install 'compressrs[demo]'"
            ) from None
        return DistilledClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
