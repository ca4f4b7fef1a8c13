"""Parts of pages that are computed before they are read.

The front page lists the guides, the pages of rules say what the core's registry knows of them.
"""

import inspect
import re
from fnmatch import fnmatch
from pathlib import Path

import ml_dtypes
import numpy as np
from sphinx.application import Sphinx

from compressrs import optim

#: What stands for the guides that no table of contents names.
GUIDES = "more guides"


def unlisted(folder: Path, index: str) -> list[str]:
    """Return the pages of a folder that the front page does not name, so that none is lost."""
    listed = ["index", "search", *(line.strip() for line in index.splitlines())]
    pages = [page.stem for page in sorted(folder.glob("*.md"))]
    return [page for page in pages if not any(fnmatch(page, line) for line in listed)]


def rule_of(page: str) -> type[optim.Optimizer] | None:
    """Return the class that a page in docs/optimizers is about."""
    name = page.removeprefix("optimizers/")
    classes = {n.lower(): getattr(optim, n) for n in optim.__all__ if n != "Optimizer"}
    found = classes.get(name) if page.startswith("optimizers/") else None
    return found if found is not None and hasattr(found, "_rule") else None


def state_bytes(cls: type[optim.Optimizer], weights: np.ndarray, **storage: str) -> str:
    """Return the bytes of state per weight, as the optimizer allocates it; "" if it refuses."""
    try:
        opt = cls(weights, **storage)
    except ValueError:
        return ""
    opt.step(np.ones_like(weights))
    total = sum(np.asarray(value).nbytes for value in opt.state[0].values() if np.ndim(value))
    return f"{total / weights.size:.3g}"


def rule_part(cls: type[optim.Optimizer]) -> str:
    """Return the part of a rule's page that the code itself knows."""
    name = cls.__name__
    single = np.ones((256, 256), np.float32)
    half = single.astype(ml_dtypes.bfloat16)
    columns = {
        'float32 weights, `state_dtype="float32"`': state_bytes(cls, single),
        '`state_dtype="bfloat16"`': state_bytes(cls, single, state_dtype="bfloat16"),
        '`state_dtype="int8"`': state_bytes(cls, single, state_dtype="int8"),
        'bfloat16 weights, `precision="kahan"`': state_bytes(cls, half, precision="kahan"),
        '`precision="master"`': state_bytes(cls, half, precision="master"),
    }
    rows = "".join(f"| {key} | {value or 'refused'} |\n" for key, value in columns.items())
    options = [p for p in inspect.signature(cls).parameters.values() if p.name != "params"]
    arguments = ", ".join(str(p).partition(":")[0] + default(p) for p in options)
    return (
        "\n## Signature and state\n\n"
        f"{{py:class}}`{name}(params, {arguments}) <compressrs.optim.{name}>`\n\n"
        "| A matrix of 256 x 256 | Bytes of state per weight |\n|---|---:|\n" + rows + "\n"
        "Weights may be float32, float64, float16 or bfloat16, gradients of any floating-point "
        "dtype; state of float64 weights is float64 unless `state_dtype` says otherwise. "
        "[Low-precision weights and state](../few_bytes.md) has what each costs in quality.\n"
    )


def default(parameter: inspect.Parameter) -> str:
    """Return the default of a parameter as it stands in a signature."""
    return "" if parameter.default is parameter.empty else f"={parameter.default}"


def formula(cls: type[optim.Optimizer]) -> str:
    """Return the formula of a rule's docstring, "" if it has none."""
    found = re.search(r"^\.\. math::\n(.*?)(?=^\S|\Z)", inspect.getdoc(cls) or "", re.M | re.S)
    return f"```{{math}}\n{inspect.cleandoc(found[1])}\n```\n" if found else ""


def rule_page(cls: type[optim.Optimizer], text: str) -> str:
    """Return the text of a rule's page with its formula typeset, and what the code knows."""
    # `help` is for those who read the page without the site.
    text = re.sub(r"^All options and the sources: `help.*\n\n", "", text, flags=re.MULTILINE)
    if typeset := formula(cls):
        named = "In the names of the parameters:\n\n```text"
        text = text.replace("```text", f"{typeset}\n{named}", 1)
    return text + rule_part(cls)


def linked(text: str) -> str:
    """Return text in which what `help` is advised for is a link."""
    return re.sub(r"`help\((compressrs[\w.]+)\)`", r"{py:obj}`\1`", text)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Add what is computed to the text of a page."""
    # Sphinx's own page of results is called search, so the guide of that name is included.
    source[0] = re.sub(r"\]\(((?:\.\./)*)search\.md", r"](\1searching.md", source[0])
    if page == "index":
        guides = unlisted(Path(app.srcdir), source[0])
        source[0] = source[0].replace(GUIDES, "\n".join(guides))
    elif (cls := rule_of(page)) is not None:
        source[0] = rule_page(cls, source[0])
    elif "/" in page:
        source[0] = linked(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
