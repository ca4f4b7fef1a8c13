"""Search for the rules of ``compressrs compress`` under a budget."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressrs.checkpoint import Recipe, Report


@dataclass(frozen=True)
class Target:
    """What is asked of the result instead of rules; nothing by default."""

    budget: int | None
    latency: float | None
    max_drop: float | None
    evaluate: str | None
    cache: Path | None
    workers: int

    def __post_init__(self) -> None:
        if (self.max_drop is None) != (self.evaluate is None):
            raise ValueError("give max-drop and evaluate together")
        if self.max_drop is not None and (self.budget, self.latency) != (None, None):
            raise ValueError("give max-drop without budget and target-latency")
        if not self.given and (self.cache is not None or self.workers != 1):
            raise ValueError(
                "cache and workers need budget, target-latency or max-drop; workers without them "
                "need --executor"
            )

    @property
    def given(self) -> bool:
        """Whether anything is asked."""
        return (self.budget, self.latency, self.max_drop) != (None, None, None)

    def compress(self, src: Path, output: Path, calibration: Path | None) -> tuple[Report, Recipe]:
        """Compress a checkpoint by the rules with the least error that do what is asked.

        Raises
        ------
        OSError, ValueError
            As `compressrs.search.compress`.
        """
        from compressrs import prune, search

        limits: dict[str, float] = {}
        if self.budget is not None:
            limits["bytes"] = self.budget
        if self.latency is not None:
            limits["latency"] = self.latency
        seen = None if calibration is None else prune.load_statistics(calibration)
        rules = search.options.RULES if seen is None else search.options.CALIBRATED_RULES
        found = search.compress(
            src, limits or None, seen, destination=output, options=rules, max_drop=self.max_drop,
            evaluate=None if self.evaluate is None else _Command(self.evaluate),
            cache=self.cache, workers=self.workers, progress=True,
        )  # fmt: skip
        assert found.report is not None and found.recipe is not None
        return found.report, found.recipe


class _Command:
    """A command that prints the accuracy of a safetensors file; called, it returns the loss."""

    def __init__(self, command: str) -> None:
        self.words = shlex.split(command)
        if not self.words:
            raise ValueError("evaluate must be a command, got none")

    def __call__(self, arrays: Mapping[str, Any]) -> float:
        from compressrs._files import save_tensors

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.safetensors")
            save_tensors(path, arrays, {})
            try:
                done = subprocess.run([*self.words, str(path)], capture_output=True, text=True)
            except OSError as error:
                raise ValueError(f"evaluate cannot be run: {error}") from None
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
            raise ValueError(f"evaluate exited with {done.returncode} and said: {said[0]}")
        try:
            return -float(done.stdout.split()[-1])
        except (ValueError, IndexError):
            raise ValueError(
                f"evaluate must print a number last, got {done.stdout.strip()[-80:]!r}"
            ) from None
