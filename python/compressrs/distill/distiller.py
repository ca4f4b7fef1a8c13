"""The training of a student: with soft targets, then on labels."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from compressrs._arrays import Array, flatten
from compressrs._checks import (
    converted,
    file_path,
    flag,
    number,
    require_unmasked,
    share,
    whole,
    with_length,
)
from compressrs._files import load_tensors, require_safetensors, save_tensors
from compressrs._json import parse_json
from compressrs._progress import progress_bar
from compressrs._state import Described
from compressrs.distill._calling import five_arguments
from compressrs.distill.cache import TeacherCache
from compressrs.distill.kd import kd_loss
from compressrs.distill.probabilities import one_temperature
from compressrs.distill.teachers import TopK
from compressrs.optim import EMA, Optimizer
from compressrs.optim._trained import require_trained
from compressrs.optim._weights import Weights
from compressrs.optim.lr_scheduler import LRScheduler
from compressrs.train_state import TrainState, pack, unpack

FORMAT = "compressrs.distiller"
VERSION = "2"

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

#: Distillers in an epoch. Not an attribute, which copies would have as well.
_in_epoch: weakref.WeakSet[Distiller] = weakref.WeakSet()

#: A number, or one as a function of the training step, counted from 0.
Schedule: TypeAlias = float | Callable[[int], float]


class Epoch(NamedTuple):
    """The result of an epoch."""

    #: "soft" or "hard".
    phase: str
    #: The mean over the batches.
    loss: float
    #: Accuracy on the validation rows, or None.
    accuracy: float | None


class _Backward:
    """The backward pass of a layer, as a function; copies along with the layer."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def __call__(self, gradient: Array) -> Any:
        self.layer.backward(gradient)
        return self.layer.grads


def _on_all_ranks(
    method: Callable[Concatenate[Distiller, _Arguments], _Result],
) -> Callable[Concatenate[Distiller, _Arguments], _Result]:
    """Have a method raise on all ranks that train together if it raises on one."""

    @functools.wraps(method)
    def wrapped(self: Distiller, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        with self._together(method.__name__):
            return method(self, *args, **kwargs)

    return wrapped


class Distiller(Described):
    r"""Trains a student on the outputs of a teacher, then on labels alone.

    Parameters
    ----------
    student : layer, or pair of callables
        An object with ``forward(x)``, ``backward(gradient)`` and `grads`, as those of
        `compressrs.nn`; or ``(forward, backward)`` where ``forward(x)`` gives the logits
        and ``backward(gradient)`` takes their gradient and returns what the optimizer's
        ``step`` takes.
    teacher : callable, array, TopK, TeacherCache, or list of these
        A callable gives logits for a batch of `x`. The others hold the logits of all rows
        of `x`. A list of callables or arrays is an ensemble.
    optimizer : Optimizer
        The optimizer of the student's parameters.
    loss : callable, default `kd_loss`
        Called as ``loss(logits, teacher, temperature, labels, alpha)``; returns the loss and
        its gradient. Set options with, for example,
        ``functools.partial(cr.distill.kd_loss, divergence="js")``. `dkd_loss`, `dist_loss`,
        `hint_loss`, `mse_loss <compressrs.nn.mse_loss>` and other losses without a parameter
        ``alpha`` are called as ``loss(logits, teacher)`` and weighted by `alpha`, the
        cross-entropy with the labels by ``1 - alpha``; ``temperature`` and ``labels`` are
        passed if the loss has parameters of these names that no ``partial`` sets. Functions
        of ``*args``, those that require five arguments, and builtins that do not tell their
        parameters are given all five.
    temperature : float or callable, default 4.0
        :math:`T`, or a function of the training step.
    alpha : float or callable, default 0.5
        Weight of the soft term, or a function of the training step.
    scheduler : LRScheduler, optional
        A schedule of the optimizer's learning rate, whose ``step()`` is called after each
        step of the optimizer.
    pruner : Pruner or GroupPruner, optional
        Its ``step`` is called after each step, with the gradients if its score needs them.
    ema : EMA, optional
        Its ``update()`` is called after each step. Pruner and averages are part of checkpoints.
    after_step : callable, optional
        Called last after each step, with the distiller.
    after_epoch : callable, optional
        Called after each epoch, with the distiller and its `Epoch`.
    batch_size : int, default 32
    rng : int or Generator, default 0
        Seed of the order of the rows, which depends only on it and the epoch; drawn from the
        generator if one is given.

    Attributes
    ----------
    history : list of Epoch
        One entry an epoch: `phase`, `loss`, `accuracy`.

    Raises
    ------
    TypeError
        If an argument is of another type, or `loss` takes other arguments.
    ValueError
        If a number is out of its range, or `optimizer` has none of the student's parameters.

    Examples
    --------
    >>> import numpy as np, compressrs as cr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((256, 8)).astype(np.float32)
    >>> y = (x[:, 0] + x[:, 1] > 0).astype(int)
    >>> def teacher(x):
    ...     score = 5 * (x[:, :1] + x[:, 1:2])
    ...     return np.concatenate([-score, score], axis=1)
    >>> student = cr.nn.Linear(8, 2, rng=0)
    >>> opt = cr.optim.Adam(student.params, lr=0.05)
    >>> distiller = cr.distill.Distiller(student, teacher, opt, temperature=2.0)
    >>> history = distiller.fit(x, y, epochs=5, hard_epochs=1)
    >>> [epoch.phase for epoch in history]
    ['soft', 'soft', 'soft', 'soft', 'soft', 'hard']
    >>> bool(np.mean(student(x).argmax(axis=1) == y) > 0.9)
    True
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        optimizer: Optimizer,
        *,
        loss: Callable[..., tuple[Any, Array]] = kd_loss,
        temperature: Schedule = 4.0,
        alpha: Schedule = 0.5,
        scheduler: LRScheduler | None = None,
        pruner: Any = None,
        ema: EMA | None = None,
        after_step: Callable[[Distiller], object] | None = None,
        after_epoch: Callable[[Distiller, Epoch], object] | None = None,
        batch_size: int = 32,
        rng: int | np.random.Generator = 0,
    ) -> None:
        if isinstance(student, tuple):
            if len(student) != 2 or not all(map(callable, student)):
                raise TypeError("student must be a layer or a pair (forward, backward)")
            self._forward, self._backward = student
        else:
            for name in ("forward", "backward", "grads"):
                if not hasattr(student, name):
                    raise TypeError(
                        f"student must have {name}, as the layers of compressrs.nn, or be a "
                        f"pair (forward, backward), got {type(student).__name__}"
                    )
            self._forward, self._backward = student.forward, _Backward(student)
        if not hasattr(optimizer, "step") or not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer must be an Optimizer, got {type(optimizer).__name__}")
        require_trained(student, optimizer, "student")
        if scheduler is not None and not isinstance(scheduler, LRScheduler):
            raise TypeError(f"scheduler must be an LRScheduler, got {type(scheduler).__name__}")
        for name, part in (("pruner", pruner), ("ema", ema)):
            if part is not None and not hasattr(part, "state_dict"):
                raise TypeError(f"{name} must have state_dict, got {type(part).__name__}")
        for name, function in (
            ("loss", loss),
            ("after_step", after_step),
            ("after_epoch", after_epoch),
        ):
            if not callable(function) and (function is not None or name == "loss"):
                raise TypeError(f"{name} must be callable, got {type(function).__name__}")
        self._members = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        if not self._members:
            raise ValueError("teacher must not be an empty list")
        self._ensemble = isinstance(teacher, (list, tuple))
        for member in self._members:
            require_unmasked(member, "teacher")
            if not (callable(member) or isinstance(member, (np.ndarray, TopK, TeacherCache))):
                raise TypeError(
                    "teacher must be callable, an array of logits, TopK or TeacherCache, got "
                    f"{type(member).__name__}"
                )
        self._student = None if isinstance(student, tuple) else student
        self._optimizer, self._scheduler = optimizer, scheduler
        self._pruner, self._ema = pruner, ema
        self._after_step, self._after_epoch = after_step, after_epoch
        self._loss = five_arguments(loss)
        self._temperature, self._alpha = temperature, alpha
        # Fails now rather than in the middle.
        self._at(0)
        self.batch_size = whole(batch_size, "batch_size", 1)
        if isinstance(rng, np.random.Generator):
            rng = int(rng.integers(2**63))
        self.seed = whole(rng, "rng", 0)
        self.history: list[Epoch] = []
        #: Steps of the optimizer.
        self.step_count = 0
        self._phase_done = {"soft": False, "hard": False}
        self._best: tuple[float, dict[str, Array]] | None = None
        self._waited = 0

    def _together(self, what: str) -> AbstractContextManager[None]:
        """Have the block raise on all ranks that train together if it raises on one."""
        return contextlib.nullcontext()

    @_on_all_ranks
    def fit(
        self,
        x: Array,
        y: Array | None = None,
        *,
        epochs: int,
        hard_epochs: int = 0,
        sample_weight: Array | None = None,
        validation: tuple[Array, Array] | None = None,
        patience: int | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> list[Epoch]:
        """Train for some epochs with soft targets, then for some on labels.

        Parameters
        ----------
        x : array, shape (n, ...)
            The data set, which is indexed by arrays of rows.
        y : array of int, shape (n,), optional
            Labels; -100 for rows that have none. Needed if `alpha` is less than 1 or
            there are `hard_epochs`.
        epochs, hard_epochs : int
            Epochs of both phases, counted from the first call: a second call with more
            epochs continues.
        sample_weight : array, shape (n,), optional
            Weight of each row, at least 0 and not 0 in all, in means over a batch. The `loss`
            must have a parameter of this name.
        validation : pair of array, optional
            Rows and their labels, for `accuracy`.
        patience : int, optional
            End a phase after this many epochs without a better accuracy, and restore the
            parameters of its best epoch. Requires `validation`.
        checkpoint : path, optional
            A safetensors file that is written after each epoch, and read first if it
            exists: an interrupted run continues from it, with the same result.
        progress : bool, default False
            Whether to show a progress bar (needs rich).

        Returns
        -------
        list of Epoch
            `history`.

        Raises
        ------
        TypeError
            If `y` does not hold integers.
        ValueError
            If lengths disagree, labels are needed but missing, or the checkpoint does not
            fit.
        FloatingPointError
            If the loss of an epoch is NaN.
        ModuleNotFoundError
            If `checkpoint` needs safetensors, or `progress` rich, which is not installed.

        Notes
        -----
        An exception within an epoch, including KeyboardInterrupt, reverts the whole epoch:
        parameters, optimizer state and schedule. Another call continues with the same result
        as an uninterrupted run.
        """
        flag(progress, "progress")
        x, n = with_length(x, "x")
        if n == 0:
            raise ValueError("x must have at least one row, got none")
        epochs, hard_epochs = whole(epochs, "epochs", 0), whole(hard_epochs, "hard_epochs", 0)
        if y is not None:
            y = converted(y, "y")
            if y.dtype.kind not in "iu":
                raise TypeError(f"y must hold integers, got {y.dtype}")
            if y.shape != (n,):
                raise ValueError(f"y must have the shape {(n,)} of the rows of x, got {y.shape}")
        elif hard_epochs:
            raise ValueError("y must be given to train on labels, got None")
        if sample_weight is not None:
            sample_weight = converted(sample_weight, "sample_weight", np.float64)
            valid = np.isfinite(sample_weight) & (sample_weight >= 0)
            if sample_weight.shape != (n,) or not valid.all():
                raise ValueError(f"sample_weight must hold {n} numbers, finite and at least 0")
            if not sample_weight.any():
                raise ValueError("sample_weight must not be 0 in all rows")
        for i, member in enumerate(self._members):
            if not callable(member) and len(member) != n:
                name = f"teacher[{i}]" if self._ensemble else "teacher"
                raise ValueError(f"{name} must have the {n} rows of x, got {len(member)}")
        if validation is not None:
            validation = _validation(validation)
        if patience is not None:
            patience = whole(patience, "patience", 1)
            if validation is None:
                raise ValueError("patience needs validation rows, got None")
        path = None if checkpoint is None else file_path(checkpoint, "checkpoint")
        if path is not None:
            require_safetensors()
        if path is not None and not self.history and path.exists():
            self.load(path)
        self._begin(x, y, sample_weight, (epochs, hard_epochs, patience, validation is None))
        for phase, count in (("soft", epochs), ("hard", hard_epochs)):
            done = sum(epoch.phase == phase for epoch in self.history)
            if not self._phase_done[phase] and done < count:
                with progress_bar(phase, count - done, progress) as advance:
                    for _ in range(done, count):
                        with self._all_or_nothing():
                            self._epoch(phase, x, y, sample_weight, validation)
                        stop = self._judge(phase, patience)
                        if path is not None:
                            self.save(path)
                        advance()
                        if stop:
                            break
            # Of this phase, or of one that was interrupted just before this line.
            if self._best is not None and self.history[-1].phase == phase:
                self._take_best()
        if path is not None:
            self.save(path)
        return self.history

    def _begin(
        self, x: Any, y: Array | None, weight: Array | None, settings: tuple[Any, ...]
    ) -> None:
        """Do what is to be done before the first epoch of `fit`."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, the optimizer's state and the history to a safetensors file.

        Raises
        ------
        OSError
            If it cannot be written; what was there before still is.
        """
        arrays: dict[str, Array] = {}
        state = pack(self._state().state_dict(), "state", arrays)
        if self._best is not None:
            arrays |= {f"best.{name}": x for name, x in self._best[1].items()}
        progress = {
            "history": self.history,
            "step_count": self.step_count,
            "phase_done": self._phase_done,
            "best": None if self._best is None else self._best[0],
            "waited": self._waited,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "state": state,
        }
        metadata = {"format": FORMAT, "version": VERSION, "progress": json.dumps(progress)}
        save_tensors(file_path(path), arrays, metadata)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load a file that `save` wrote into the arrays of the optimizer's parameters.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is damaged, of another student or optimizer, or of another seed or batch
            size; nothing is changed in that case.
        """
        file = file_path(path)
        arrays, metadata = load_tensors(file, {"format": FORMAT, "version": VERSION})
        try:
            progress = parse_json(metadata["progress"])
            history = [Epoch(*epoch) for epoch in progress["history"]]
            state = unpack(progress["state"], arrays)
            values = {name: state["parts"]["arrays"][f"[{name!r}]"] for name in self._arrays()}
            best = None
            if progress["best"] is not None:
                copies = {name: arrays[f"best.{name}"].copy() for name in self._arrays()}
                best = (number(progress["best"], "best"), copies)
            step_count = whole(progress["step_count"], "step_count", 0)
            waited = whole(progress["waited"], "waited", 0)
            phase_done = {phase: bool(progress["phase_done"][phase]) for phase in self._phase_done}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} holds no distillation of such a student: {error!r}") from None
        for name in ("seed", "batch_size"):
            if progress.get(name) != getattr(self, name):
                raise ValueError(
                    f"{file} must have {name} {getattr(self, name)}, got {progress.get(name)}"
                )
        for given in [values, *([] if best is None else [best[1]])]:
            for name, p in self._arrays().items():
                value = given[name]
                if not isinstance(value, np.ndarray):
                    raise ValueError(f"{file} must have an array for {name}, got {value!r}")
                if p.shape != value.shape or p.dtype != value.dtype:
                    raise ValueError(
                        f"{file} must have {name} of {p.dtype} with shape {p.shape}, got "
                        f"{value.dtype} with shape {value.shape}"
                    )
        try:
            self._state().load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{file} holds another distillation: {error}") from error
        self.history, self.step_count, self._waited = history, step_count, waited
        self._phase_done, self._best = phase_done, best

    def _at(self, step: int) -> tuple[float, float]:
        """Return temperature and alpha of a step."""
        t = self._temperature(step) if callable(self._temperature) else self._temperature
        alpha = self._alpha(step) if callable(self._alpha) else self._alpha
        return one_temperature(t), share(alpha, "alpha")

    def _targets(self, x: Array, rows: npt.NDArray[np.intp]) -> Any:
        """Return the outputs of the teacher for a batch."""
        batch = [member(x) if callable(member) else member[rows] for member in self._members]
        return batch if self._ensemble else batch[0]

    def _names(self) -> list[str]:
        groups = self._optimizer.state_dict()["param_groups"]
        return [name for group in groups for name in group["param_names"]]

    def _assign(self, values: dict[str, Array]) -> None:
        """Set parameters and buffers of the student; masked weights become 0."""
        own = self._arrays()
        shared = Weights("Distiller", list(own), list(own.values()))
        shared.assign([values[name] for name in own])

    def _parameters(self) -> list[Array]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _arrays(self) -> dict[str, Array]:
        """Return parameters and buffers, such as running means, by name."""
        named = getattr(self._student, "named_layers", None)
        layers = [] if named is None else list(named())
        buffers = {
            f"{path}.{name}": x
            for path, layer in layers
            for name, x in getattr(layer, "buffers", {}).items()
        }
        return {**dict(zip(self._names(), self._parameters(), strict=True)), **buffers}

    def _state(self) -> TrainState:
        """Return all that an epoch changes."""
        return TrainState(**self._parts())

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "pruner": self._pruner,
            "ema": self._ema,
            "arrays": self._arrays(),
        }
        return {name: part for name, part in parts.items() if part is not None}

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Revert an epoch if it raises."""
        if self in _in_epoch:
            raise RuntimeError("fit must not be called while it runs, as from after_step")
        _in_epoch.add(self)
        try:
            with self._reverting():
                yield
        finally:
            _in_epoch.discard(self)

    @contextlib.contextmanager
    def _reverting(self) -> Iterator[None]:
        state = self._state()
        before = copy.deepcopy(state.state_dict())
        steps, epochs = self.step_count, len(self.history)
        try:
            yield
        except BaseException:
            state.load_state_dict(before)
            # A pruner that is not the distiller's may have removed weights in this epoch.
            self._assign(self._arrays())
            self.step_count = steps
            del self.history[epochs:]
            raise

    def _set_mode(self, training: bool) -> None:
        """Set a student that knows the difference to training or to evaluation."""
        train = getattr(self._student, "train", None)
        if train is not None and hasattr(self._student, "eval"):
            train(training)

    def _epoch(
        self,
        phase: str,
        x: Array,
        y: Array | None,
        weight: Array | None,
        validation: tuple[Array, Array] | None,
    ) -> None:
        self._set_mode(True)
        order = np.random.default_rng([self.seed, len(self.history)]).permutation(len(x))
        losses = []
        for start in range(0, len(x), self.batch_size):
            rows = order[start : start + self.batch_size]
            if weight is None or weight[rows].any():
                losses.append(self._learn(phase, x, y, weight, rows))
        mean = float(np.mean(losses))
        if np.isnan(mean):
            raise FloatingPointError(
                f"the loss of epoch {len(self.history)} is NaN; a smaller learning rate may help"
            )
        accuracy = None
        if validation is not None:
            self._set_mode(False)
            hits = self._forward(validation[0]).argmax(axis=1) == validation[1]
            accuracy = float(np.mean(hits))
            self._set_mode(True)
        self.history.append(Epoch(phase, mean, accuracy))
        if self._after_epoch is not None:
            self._after_epoch(self, self.history[-1])

    def _learn(
        self,
        phase: str,
        x: Array,
        y: Array | None,
        weight: Array | None,
        rows: npt.NDArray[np.intp],
    ) -> float:
        """Take a step on a batch; return its loss."""
        loss, gradient = self._loss_of(phase, x, y, weight, rows)
        self._step(self._backward(gradient))
        return float(loss)

    def _loss_of(
        self,
        phase: str,
        x: Array,
        y: Array | None,
        weight: Array | None,
        rows: npt.NDArray[np.intp],
        alpha: float | None = None,
    ) -> tuple[Any, Array]:
        """Return the loss of the student on some rows, and its gradient.

        `alpha` is by default that of this step.
        """
        batch = x[rows]
        logits = self._forward(batch)
        labels = None if y is None else y[rows]
        counts = None if weight is None else weight[rows]
        if phase == "hard":
            return kd_loss(logits, logits, 1.0, labels, 0.0, sample_weight=counts)
        t, due = self._at(self.step_count)
        targets = self._targets(batch, rows)
        options = {} if counts is None else {"sample_weight": counts}
        return self._loss(logits, targets, t, labels, due if alpha is None else alpha, **options)

    def _step(self, gradients: Any) -> None:
        """Take a step of the optimizer and of all that follows it."""
        self._update(gradients)
        if self._pruner is not None:
            if getattr(getattr(self._pruner, "score", None), "needs_gradients", False):
                leaves = [leaf for _, leaf in flatten(gradients)]
                indices = [self._optimizer._index_of(w) for w in self._pruner._weights]
                self._pruner.step([None if i is None else leaves[i] for i in indices])
            else:
                self._pruner.step()
        if self._ema is not None:
            self._ema.update()
        self.step_count += 1
        if self._after_step is not None:
            self._after_step(self)

    def _update(self, gradients: Any) -> None:
        """Take a step of the optimizer and of its schedule."""
        self._optimizer.step(gradients)
        if self._scheduler is not None:
            self._scheduler.step()

    def _judge(self, phase: str, patience: int | None) -> bool:
        """Remember the best parameters; return whether the phase shall end."""
        accuracy = self.history[-1].accuracy
        if patience is None or accuracy is None:
            return False
        if self._best is None or accuracy > self._best[0]:
            self._best = accuracy, {name: x.copy() for name, x in self._arrays().items()}
            self._waited = 0
        else:
            self._waited += 1
        self._phase_done[phase] = self._waited >= patience
        return self._phase_done[phase]

    def _take_best(self) -> None:
        """Take the best parameters; the next phase has a best of its own."""
        assert self._best is not None
        self._assign(self._best[1])
        self._best, self._waited = None, 0


def _validation(given: Any) -> tuple[Any, Array]:
    """Return the rows for validation and their labels.

    Raises
    ------
    TypeError, ValueError
        If they are not a pair, or of different lengths.
    """
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"validation must be a pair (x, y), got {type(given).__name__}")
    x, y = given
    (x, rows), labels = with_length(x, "validation[0]"), converted(y, "validation[1]")
    if isinstance(x, (str, bytes)) or labels.shape != (rows,) or rows == 0:
        raise ValueError(
            f"validation must hold rows and one label for each, got {rows} rows and labels of "
            f"shape {labels.shape}"
        )
    return x, labels
