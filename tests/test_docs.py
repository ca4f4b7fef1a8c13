"""Every example in docstrings and pages runs, and every public name is documented."""

import doctest
import importlib
import importlib.util
import pkgutil
import re
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

import compressrs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RULES = [
    name
    for name, value in vars(compressrs.optim).items()
    if isinstance(value, type)
    and issubclass(value, compressrs.optim.Optimizer)
    and value is not compressrs.optim.Optimizer
]
MODULES = [compressrs.__name__] + [
    m.name
    for m in pkgutil.walk_packages(compressrs.__path__, "compressrs.")
    if "_core" not in m.name
]


#: Packages without which modules and pages cannot run, where their names begin so.
NEEDED = {
    "compressrs.torch": "torch",
    "compressrs.onnx": "onnx",
    "compressrs.optim.global_search": "cmaes",
    "global_search": "cmaes",
    **{
        f"compressrs.search.{name}": "optuna"
        for name in ("driver", "evolution", "report", "sampling", "storage", "trials")
    },
    "from_pytorch": "torch",
    "from_onnx": "onnxruntime",
    "architectures": "optuna",
    "from_jax": "jax",
}


def require_packages(name):
    for start, package in NEEDED.items():
        if name.startswith(start):
            pytest.importorskip(package)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    require_packages(name)
    with np.printoptions(legacy=False):
        results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages(page):
    """Python blocks run in order, and links resolve."""
    require_packages(page.stem)
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile("\n".join(blocks), str(page), "exec"), {})
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", prose):
        assert (page.parent / link).exists(), link


def test_every_rule_has_a_page():
    overview = (ROOT / "docs" / "optimizers" / "README.md").read_text(encoding="utf-8")
    assert len(RULES) == len(compressrs._core.rules()) + 1  # AdamW has Adam's.
    for name in RULES:
        page = ROOT / "docs" / "optimizers" / f"{name.lower()}.md"
        assert f"help(compressrs.optim.{name})" in page.read_text(encoding="utf-8")
        assert f"[{name}]({name.lower()}.md)" in overview


def test_public_names_are_documented():
    undocumented = [
        f"{module}.{name}"
        for module in MODULES
        if not any(
            module.startswith(start) and importlib.util.find_spec(package) is None
            for start, package in NEEDED.items()
        )
        for name, value in vars(importlib.import_module(module)).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module
        and not (value.__doc__ or "").strip()
    ]
    assert undocumented == []


def script(path):
    """Return a module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / "docs" / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_page_of_the_site(monkeypatch):
    pytest.importorskip("sphinx")
    api_pages = script("_ext/api_pages.py")
    monkeypatch.setattr(compressrs.prune, "made_up", lambda: None, raising=False)
    monkeypatch.setattr(compressrs.prune, "__all__", [*compressrs.prune.__all__, "made_up"])
    pages = api_pages.pages()
    names = [f"compressrs.{name}" for name in dir(compressrs)]
    for path in ["compressrs", *(name for name in names if name in MODULES)]:
        assert path in pages
        try:
            package = importlib.import_module(path)
        except ModuleNotFoundError:  # of an extra
            continue
        for name in getattr(package, "__all__", []):
            value = getattr(package, name)
            if isinstance(value, types.ModuleType):
                assert f"{path}.{name}" in pages
            elif callable(value):
                page = pages[f"{path}.{name.casefold()}"]
                assert re.search(rf"^\.\. auto(class|function|exception):: {name}$", page, re.M)
            else:
                assert f".. autodata:: {name}\n" in pages[path]
    assert "compressrs.prune.made_up" in pages


def test_pages_of_rules_have_their_formula_and_state():
    pytest.importorskip("sphinx")
    parts = script("_ext/page_parts.py")
    for name in RULES:
        cls = getattr(compressrs.optim, name)
        assert parts.rule_of(f"optimizers/{name.lower()}") is cls
        # AdamW's is Adam's.
        assert parts.formula(cls).startswith("```{math}") or cls._fixed
    assert "| 8 |" in parts.rule_part(compressrs.optim.Adam)
    assert '`state_dtype="int8"` | refused |' in parts.rule_part(compressrs.optim.Rprop)
    assert parts.rule_of("optimizers/README") is None


#: Folders with one page for each member of a family.
FAMILIES = ["optimizers", "pruning", "quantization", "distillation", "formats"]


#: Pages in their folders that are of no member.
OVERVIEWS = {"README", "comparison", "global_search"}


def family(folder):
    pages = sorted((ROOT / "docs" / folder).glob("*.md"))
    return {p.stem: p.read_text(encoding="utf-8") for p in pages if p.stem not in OVERVIEWS}


@pytest.mark.parametrize("folder", FAMILIES)
def test_pages_of_families_have_their_parts(folder):
    """A formula, when to choose it and when not, and the way to the API."""
    overview = (ROOT / "docs" / folder / "README.md").read_text(encoding="utf-8")
    for name, text in family(folder).items():
        assert re.search(r"^```(math|text)$", text, re.MULTILINE), name
        assert "**When to choose it.**" in text and "**When not to.**" in text, name
        assert "`help(compressrs." in text, name
        assert f"({name}.md)" in overview, name


def test_every_score_loss_and_format_has_a_page():
    from compressrs import distill, prune
    from compressrs.quantize.scheme import _BITS
    from compressrs.sparse.formats import FORMATS

    scores = {
        n.lower()
        for n in prune.__all__
        if isinstance(getattr(prune, n), type) and issubclass(getattr(prune, n), prune.Score)
    }
    # A baseline, and the base class.
    assert scores - {"random", "score"} <= set(family("pruning"))
    losses = "".join(family("distillation").values())
    for name in distill.__all__:
        assert not name.endswith("_loss") or f"`help(compressrs.distill.{name})`" in losses
    formats = family("formats")
    assert set(FORMATS) <= set(formats)
    text = "".join(formats.values())
    for dtype in _BITS:
        # Signed integers are the default.
        assert dtype == "int" or f'"{dtype}"' in text or dtype.partition("_")[0] in formats, dtype
    for name in importlib.import_module("compressrs.checkpoint.export").FORMATS:
        assert name == "safetensors" or f"--to {name}" in text, name


def test_linked_licences_are_listed():
    if shutil.which("cargo") is None:
        pytest.skip("needs Cargo")
    licences = script("licences.py")
    assert licences.PAGE.read_text(encoding="utf-8") == licences.page()


def test_the_citation_names_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {compressrs.__version__}\n" in text
