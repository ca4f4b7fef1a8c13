"""Every member of a family is complete: what CONTRIBUTING asks for is there for each.

The members are found in the registries, so that a new one fails here until its reference, its
row in the documentation and its tests exist; a made-up member shows that each is missed.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from compressrs import _core, distill, optim, prune, sparse
from compressrs.cli._app import COMMANDS
from compressrs.sparse.formats import FORMATS
from tests.faults import public, test_distillation, test_numerics_losses
from tests.reference import distill as distill_reference
from tests.reference import optim as optim_reference
from tests.reference import prune as prune_reference

ROOT = Path(__file__).parents[1]


def has_row(name: str, *pages: str) -> bool:
    """Whether a table of a page has a row whose first cell names it."""
    rows = [line for page in pages for line in (ROOT / page).read_text().splitlines()]
    return any(line.startswith("|") and f"`{name}`" in line.split("|")[1] for line in rows)


def mentions(name: str, *paths: str) -> bool:
    return any(name in file.read_text() for path in paths for file in ROOT.glob(path))


class Family(NamedTuple):
    members: dict[str, Any]
    #: What each member needs, by name: a test of the member's name and the member.
    needs: dict[str, Callable[[str, Any], bool]]

    def missing(self, name: str, member: Any) -> list[str]:
        return [what for what, there in self.needs.items() if not there(name, member)]


def classes(package: types.ModuleType, base: type) -> dict[str, type]:
    found = {name: getattr(package, name) for name in package.__all__}
    return {
        name: member
        for name, member in found.items()
        if inspect.isclass(member) and issubclass(member, base) and member is not base
    }


def rules() -> dict[str, Any]:
    return {n: c for n, c in classes(optim, optim.Optimizer).items() if hasattr(c, "_rule")}


def losses() -> dict[str, Any]:
    return {name: getattr(distill, name) for name in distill.__all__ if name.endswith("_loss")}


def example(name: str, member: Any) -> bool:
    return name in {full.rpartition(".")[2] for full in public.EXAMPLES}


FAMILIES = {
    "rule": Family(
        rules(),
        {
            "a rule of the core": lambda _, cls: cls._rule in _core.rules(),
            "a reference": lambda _, cls: hasattr(optim_reference, cls._rule),
            "a page": lambda n, _: (ROOT / f"docs/optimizers/{n.lower()}.md").exists(),
            "an example instance": example,
        },
    ),
    "score": Family(
        classes(prune, prune.Score),
        {
            # A random score has none.
            "a reference": lambda n, _: (
                n in ("Random", "Magnitude") or hasattr(prune_reference, n.lower())
            ),
            "a row in docs/pruning.md": lambda n, _: has_row(n, "docs/pruning.md"),
            "an example instance": example,
        },
    ),
    "loss": Family(
        losses(),
        {
            "a reference": lambda n, _: hasattr(distill_reference, n),
            "a row in docs/distillation.md": lambda n, _: has_row(n, "docs/distillation.md"),
            "a test of extreme values": lambda n, _: n in test_numerics_losses.LOSSES,
            "student and teacher first": lambda _, loss: (
                [*inspect.signature(loss).parameters][:2] == ["student", "teacher"]
            ),
            # Losses of logits take a temperature, and train in a Distiller.
            "a test in a Distiller": lambda n, loss: (
                "temperature" not in inspect.signature(loss).parameters
                or n in map(loss_name, test_distillation.LOSSES)
            ),
        },
    ),
    "sparse format": Family(
        {cls.__name__: cls for cls in FORMATS.values()},
        {
            "a registered name": lambda _, cls: FORMATS.get(getattr(cls, "format", None)) is cls,
            "a row in docs/sparse.md": lambda n, _: has_row(n, "docs/sparse.md"),
            "a test of its products": lambda n, _: mentions(n, "tests/sparse/test_sparse.py"),
            "an example instance": example,
        },
    ),
    "command": Family(
        COMMANDS,
        {
            "a help text": lambda _, run: bool(run.__doc__),
            "a page that shows it": lambda n, _: (
                mentions(f"`{n} ", "docs/*.md") or mentions(f"compressrs {n}", "README.md")
            ),
            "a test": lambda n, _: mentions(f'"{n}"', "tests/*/test_*.py"),
        },
    ),
}


def loss_name(loss: Any) -> str:
    return getattr(loss, "func", loss).__name__


MEMBERS = [(family, name) for family, found in FAMILIES.items() for name in found.members]


@pytest.mark.parametrize(("family", "name"), MEMBERS)
def test_every_member_is_complete(family, name):
    assert FAMILIES[family].missing(name, FAMILIES[family].members[name]) == []


def test_every_public_format_is_registered():
    public_formats = set(classes(sparse, sparse.SparseMatrix).values())
    # A view, which no file holds.
    assert public_formats - {sparse.TransposedMatrix} == set(FORMATS.values())


class MadeUp:
    _rule = "made_up"


def made_up(x, temperature):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("family", "member"),
    [
        ("rule", MadeUp),
        ("score", MadeUp),
        ("loss", made_up),
        ("sparse format", MadeUp),
        ("command", made_up),
    ],
)
def test_all_that_a_new_member_lacks_is_named(family, member):
    found = FAMILIES[family]
    assert found.missing("made_up_member", member) == [*found.needs]
