"""Pages of the API, written from the `__all__` of each public package before a build.

A package has a page with its docstring and a table of its names, and each name has one of its
own. The build warns, and so fails under ``-W``, if a public name is described nowhere.
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import compressrs

logger = logging.getLogger(__name__)

FOLDER = "api"


class Public(NamedTuple):
    """A public name: the package that lists it, the name, and what it is."""

    package: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        """The name with its package."""
        return f"{self.package}.{self.name}"

    @property
    def kind(self) -> str:
        """What autodoc calls it."""
        if not inspect.isclass(self.value):
            return "function" if callable(self.value) else "data"
        return "exception" if issubclass(self.value, Exception) else "class"


def packages() -> dict[str, ModuleType | None]:
    """Return all public packages; None for one whose extra is not installed."""
    found: dict[str, ModuleType | None] = {}

    def add(path: str) -> None:
        try:
            package = found[path] = importlib.import_module(path)
        except ModuleNotFoundError:
            found[path] = None
            return
        for name in sorted(package.__all__):
            if isinstance(getattr(package, name), ModuleType):
                add(f"{path}.{name}")

    add("compressrs")
    for name in compressrs._EXTRAS:
        add(f"compressrs.{name}")
    return found


def public_names(path: str, package: ModuleType) -> Iterator[Public]:
    """Yield what a package lists, without the packages in it."""
    for name in sorted(package.__all__, key=str.casefold):
        value = getattr(package, name)
        if not isinstance(value, ModuleType):
            yield Public(path, name, value)


def public_objects() -> dict[str, str]:
    """Return the public path of each class and function by the path of its definition."""
    return {
        f"{found.value.__module__}.{found.value.__qualname__}": found.path
        for path, package in packages().items()
        if package is not None
        for found in public_names(path, package)
        if found.kind != "data"
    }


def heading(text: str, sign: str = "=") -> str:
    """Return a heading of reStructuredText."""
    return f"{text}\n{sign * len(text)}\n\n"


def page_name(found: Public) -> str:
    """Return the name of a page, the same for names that differ in case only.

    Some file systems do not tell these apart: `Sensitivity` and `sensitivity` share a page.
    """
    return f"{found.package}.{found.name.casefold()}"


def package_page(path: str, package: ModuleType | None, inner: list[str]) -> str:
    """Return the page of a package, with a table of its names."""
    if package is None:
        extra = path.rpartition(".")[2]
        return heading(path) + (
            f"This site was built without the packages that ``{path}`` needs: "
            f"``pip install 'compressrs[{extra}]'``, then ``help({path})``.\n"
        )
    text = heading(path) + f".. automodule:: {path}\n   :no-members:\n\n"
    names = list(public_names(path, package))
    titles = {"class": "Classes", "function": "Functions", "exception": "Exceptions and warnings"}
    for kind, title in titles.items():
        rows = [found.name for found in names if found.kind == kind]
        if rows:
            text += heading(title, "-") + ".. autosummary::\n   :nosignatures:\n\n"
            text += "".join(f"   {row}\n" for row in rows) + "\n"
    data = [found.name for found in names if found.kind == "data"]
    if data:
        text += heading("Data", "-")
        text += "".join(f".. autodata:: {name}\n   :no-value:\n\n" for name in data)
    if inner:
        text += heading("Packages", "-") + ".. toctree::\n   :maxdepth: 1\n\n"
        text += "".join(f"   {page}\n" for page in inner)
    return text


def public_base(cls: type, known: dict[str, str]) -> type | None:
    """Return the nearest base class that has a page."""
    bases = cls.__mro__[1:]
    return next((b for b in bases if f"{b.__module__}.{b.__qualname__}" in known), None)


def members(cls: type, base: type | None) -> tuple[list[str], list[str]]:
    """Return the members that the page of a class describes, and those that its base's does.

    Bases without a page are implementation, so what they define is described as the class's own;
    so are all properties. What other projects' classes define is left to their documentation.
    """
    own, inherited = [], []
    for name in dir(cls):
        owner = next((c for c in cls.__mro__ if name in vars(c)), None)
        if owner is None or not owner.__module__.startswith("compressrs"):
            continue
        member = vars(owner)[name]
        described = getattr(member, "__doc__", None) and name not in getattr(cls, "_fields", ())
        if not described or (name.startswith("_") and name != "__call__"):
            continue
        if not (callable(member) or isinstance(member, (property, classmethod, staticmethod))):
            continue
        if base is None or owner not in base.__mro__ or isinstance(member, property):
            own.append(name)
        else:
            inherited.append(name)
    return own, inherited


def class_page(found: Public, known: dict[str, str]) -> str:
    """Return the description of a class: its members, and links to what it inherits."""
    base = public_base(found.value, known)
    own, inherited = members(found.value, base)
    text = f".. auto{found.kind}:: {found.name}\n"
    if own:
        text += f"   :members: {', '.join(own)}\n"
        text += "   :special-members: __call__\n" * ("__call__" in own)
    if base is not None and inherited:
        path = known[f"{base.__module__}.{base.__qualname__}"]
        links = ", ".join(f":py:obj:`{name} <{path}.{name}>`" for name in inherited)
        text += f"\n.. rubric:: Inherited from {base.__name__}\n\n{links}\n"
    return text + "\n"


def object_pages(path: str, package: ModuleType, known: dict[str, str]) -> dict[str, str]:
    """Return the pages of the classes and functions of a package, by name.

    They are in no table of contents, which would repeat all of them beside every page; the
    package's page and the search lead to them.
    """
    pages: dict[str, str] = {}
    for found in public_names(path, package):
        if found.kind == "data":
            continue
        page = page_name(found)
        if page not in pages:
            pages[page] = ":orphan:\n\n" + heading(found.name)
            pages[page] += f":doc:`{found.package}`\n\n.. currentmodule:: {found.package}\n\n"
        if found.kind == "function":
            pages[page] += f".. autofunction:: {found.name}\n\n"
        else:
            pages[page] += class_page(found, known)
    return pages


def summary(package: ModuleType | None) -> str:
    """Return the first line of a package's docstring, as the end of a line."""
    return f": {(package.__doc__ or '').strip().splitlines()[0]}" if package else ""


def pages() -> dict[str, str]:
    """Return all pages of the API, by name."""
    known = public_objects()
    found = packages()
    texts: dict[str, str] = {}
    for path, package in found.items():
        inner = [other for other in found if other.rpartition(".")[0] == path]
        # The root's own toctree has the packages in it.
        texts[path] = package_page(path, package, inner if path != "compressrs" else [])
        if package is not None:
            texts |= object_pages(path, package, known)
    top = [path for path in found if path.count(".") <= 1]
    lines = [f"- :doc:`{path}`{summary(found[path])}\n" for path in top]
    texts["index"] = (
        heading("API")
        + "Every public name. ``help(name)`` shows the same text in Python.\n\n"
        + "".join(lines)
        + "\n.. toctree::\n   :hidden:\n   :maxdepth: 1\n\n"
        + "".join(f"   {path}\n" for path in top)
    )
    return texts


def write(app: Sphinx) -> None:
    """Write the pages, only those that changed, and delete those of names that are gone."""
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    texts = {f"{name}.rst": text for name, text in pages().items()}
    for file in folder.glob("*.rst"):
        if file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        file = folder / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of public names that no page describes."""
    described = env.domains.python_domain.objects
    for path, package in packages().items():
        if package is not None:
            for found in public_names(path, package):
                if found.path not in described:
                    logger.warning("%s is public and on no page", found.path)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.TextElement
) -> nodes.Element | None:
    """Link names by the path of their definition, or as a docstring's module sees them."""
    if node.get("refdomain") != "py":
        return None
    known = app.config.compressrs_public
    target = node["reftarget"]
    path = known.get(target) or known.get(f"{node.get('py:module')}.{target}")
    if path is None:
        # `Optimizer.step` in a docstring of another package.
        first, _, rest = target.partition(".")
        owners = {p for p in known.values() if p.rpartition(".")[2] == first}
        if len(owners) != 1 or not first[:1].isupper():
            return None
        path = ".".join([owners.pop(), rest]).rstrip(".")
    domain = env.domains.python_domain
    found = domain.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        "obj",
        path,
        node,
        content,
    )
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.add_config_value("compressrs_public", public_objects(), "")
    # Before autosummary and the search for source files.
    app.connect("builder-inited", write, priority=100)
    app.connect("env-check-consistency", check)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
