"""The files of sharded optimizers: each rank's parts, loaded on any number of ranks."""

from __future__ import annotations

import os
from typing import Any

from compressrs._arrays import Array
from compressrs._checks import file_path, flag
from compressrs._state import Undo, all_or_nothing
from compressrs._warnings import warn
from compressrs.distributed import checkpoint
from compressrs.distributed.communicator import together
from compressrs.distributed.partitioned import PartitionedOptimizer
from compressrs.distributed.pieces import gather_arrays
from compressrs.optim._loading import group_update, parameter_order
from compressrs.optim._moments import has_codes


class StoredOptimizer(PartitionedOptimizer):
    """Base class of `ShardedOptimizer`: its files."""

    def save(self, path: str | os.PathLike[str], *, weights: bool = False) -> None:
        """Save state, hyperparameters and masks to a folder, each rank its parts.

        Collective; all ranks give the same path, on a file system that they share. A
        checkpoint that is there is replaced when the new one is complete: if a rank is killed,
        the folder holds the previous one. `load` reads it on any number of ranks, `read_state`
        in one process. Requires the package safetensors (``pip install 'compressrs[save]'``).

        Parameters
        ----------
        path : str or path
            The folder.
        weights : bool, default False
            Save the parameters as well.

        Raises
        ------
        OSError
            If a file cannot be written.
        TypeError
            If a group holds a value that JSON cannot represent.
        RankError
            If another rank cannot write.
        """
        with self._reading("save"):
            with together(self.comm, "save"):
                folder, weights = file_path(path), flag(weights, "weights")
                self._sync()
                arrays: dict[str, Array] = {}
                own = iter(range(len(self._own)))
                for number, part in enumerate(self._layout.parts):
                    if part.owner != self.comm.rank:
                        continue
                    buffers = dict(self._inner._state[next(own)])
                    if weights:
                        buffers[checkpoint.WEIGHTS] = self._view(part)
                    arrays |= checkpoint.named(number, buffers)
                if self.comm.rank == 0:
                    bits = {f"mask.{i}": m for i, m in enumerate(self._masks) if m is not None}
                    arrays |= bits
                described = super().state_dict()
                head = {
                    "rule": self._kind,
                    "param_groups": described["param_groups"],
                    "shapes": [list(array.shape) for array in self._arrays()],
                    "weights": weights,
                    "microbatches": self.microbatches,
                    **({"codes": described["codes"]} if "codes" in described else {}),
                }
                checkpoint.check(head)
            checkpoint.write(self.comm, folder, head, self._layout.parts, arrays)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what `save` wrote, on any number of ranks, or the file of the rule's optimizer.

        Collective. Each rank reads the files that have something of its parts. Parameters are
        loaded if they were saved.

        Raises
        ------
        OSError
            If a file cannot be read.
        ValueError
            If it is damaged or does not match, or ranks read different ones; nothing is changed on
            any rank in that case.
        RankError
            If another rank cannot read.

        Warns
        -----
        UserWarning
            On rank 0, if the checkpoint is of a run with another `microbatches`: gradients are
            then added in another order, and the bits are no longer those of that run. The file
            of the rule's optimizer and state dicts do not tell.
        """
        self._require_own_process()
        with together(self.comm, "load"):
            folder = file_path(path)
            is_file = folder.is_file()
        if is_file:
            super().load(folder)
            return
        with together(self.comm, "load"):
            manifest = checkpoint.read(folder)
        # Of which the parts of others are gathered.
        self.comm.require_same({"checkpoint": f"the one of the save {manifest.save}"})
        with all_or_nothing() as undo:
            with together(self.comm, "load"):
                self._load_parts(manifest, undo)
            arrays = [(part.owner, self._view(part)) for part in self._layout.parts]
            gather_arrays(self.comm, arrays)

    def _warn_of_microbatches(self, manifest: checkpoint.Manifest) -> None:
        saved = manifest.microbatches
        if self.comm.rank == 0 and saved not in (None, self.microbatches):
            warn(
                f"{manifest.folder} is of a run with microbatches={saved}, got "
                f"{self.microbatches}: gradients are added in another order, and further steps "
                "do not have the bits of that run",
                UserWarning,
            )

    def _load_parts(self, manifest: checkpoint.Manifest, undo: Undo) -> None:
        arrays = self._arrays()
        given = [list(group["params"]) for group in manifest.param_groups]
        lengths = [len(group["params"]) for group in self._groups]
        named = iter([(n, a.shape) for n, a in zip(self._names, arrays, strict=True)])
        own = [[next(named) for _ in range(length)] for length in lengths]
        checkpoint.require_parameters(manifest, self._kind, own)
        order = parameter_order(manifest.param_groups, given, self._names, lengths, True)
        self._warn_of_microbatches(manifest)
        reader = checkpoint.Reader(manifest)
        wanted = [part._replace(tensor=order[part.tensor]) for part in self._own]
        found = reader.parts(wanted)
        weights = [buffers.pop(checkpoint.WEIGHTS, None) for buffers in found]
        saved_masks = reader.masks()
        masks = [saved_masks.get(i) for i in order]
        self._sync()
        try:
            updates = [
                group_update(group, self.defaults, self._fixed, self._kind)
                for group in manifest.param_groups
            ]
            take = self._inner._checked(self._inner_state(manifest, found, masks))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{manifest.folder}: {error}") from error
        undo.remember(*arrays)
        take(undo)
        self._take(updates, masks, undo)
        for part, values in zip(self._own, weights, strict=True):
            if values is not None:
                view = self._view(part)
                view[...] = values.reshape(view.shape)
        self._finish_loading(masks, undo)

    def _inner_state(
        self,
        manifest: checkpoint.Manifest,
        found: list[dict[str, Array]],
        masks: list[Array | None],
    ) -> dict[str, Any]:
        """Return the state dict of the optimizer of this rank's parts."""
        groups, first = [], 0
        for saved, inner in zip(manifest.param_groups, self._inner._groups, strict=True):
            indices = list(range(first, first + len(inner["params"])))
            first += len(indices)
            rest = {k: v for k, v in saved.items() if k not in ("params", "param_names")}
            groups.append({**rest, "params": indices})
        own_masks = {}
        state: dict[int, dict[str, Array]] = {}
        if not self._own:
            state[0] = dict(self._inner._state[0])
        for k, (part, buffers) in enumerate(zip(self._own, found, strict=True)):
            own = self._inner._state[k]
            state[k] = {
                name: values.reshape(own[name].shape)
                if name in own and values.size == own[name].size
                else values
                for name, values in buffers.items()
            }
            mask = masks[part.tensor]
            if mask is not None:
                view = self._view(part)
                own_masks[k] = mask.reshape(-1)[part.start : part.stop].reshape(view.shape)
        codes = {"codes": manifest.codes} if has_codes(state) else {}
        kind = {"class": manifest.rule}
        return {**kind, "state": state, "param_groups": groups, "masks": own_masks, **codes}
