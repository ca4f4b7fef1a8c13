"""Write docs/licences.md: what is linked into the wheel, and under which licences.

    python docs/licences.py

`tests/test_docs.py` fails while the page is not what this command writes. It needs Cargo, and the
sources of the crates, which a build has fetched.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"

#: Of several licences to choose from, the first of these; their texts are short.
PREFERRED = ("MIT", "BSD-2-Clause", "BSL-1.0", "Apache-2.0")

HEAD = """# Licences

compressrs is under the [MIT](https://github.com/compressrs/compressrs/blob/main/LICENSE-MIT) or the
[Apache 2.0](https://github.com/compressrs/compressrs/blob/main/LICENSE-APACHE) licence, at your
choice. The compiled module also holds code of Rust's standard library (MIT or Apache 2.0) and of
the crates below. Written by `python docs/licences.py` from Cargo's metadata; the wheel contains
this page. What is used only to build or test is not linked in and not listed.

| Crate | Version | Licence | Source |
|---|---|---|---|
"""


def linked() -> list[str]:
    """Return the ids of the crates that are linked in, on any platform."""
    command = "cargo tree --locked --offline -p compressrs-python -e no-proc-macro,normal"
    options = ["--target", "all", "--prefix", "none", "--format", "{p}"]
    lines = subprocess.run(
        [*command.split(), *options], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    # "name v1.2.3", then what kind it is.
    return sorted({" ".join(line.split()[:2]) for line in lines})


def packages() -> list[dict[str, str]]:
    """Return what Cargo knows of the linked crates, by name."""
    command = "cargo metadata --format-version 1 --locked --offline"
    text = subprocess.run(
        command.split(), cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    known = {f"{p['name']} v{p['version']}": p for p in json.loads(text)["packages"]}
    return [known[name] for name in linked() if not name.startswith("compressrs-")]


def licence(package: dict[str, str]) -> str:
    """Return the licence that is chosen of those that a crate offers."""
    offered = package["license"].replace("/", " OR ").split(" OR ")
    return next(name for name in PREFERRED if name in offered)


def text(package: dict[str, str]) -> str:
    """Return the text of the chosen licence, as the crate ships it; "" if it ships none."""
    folder = Path(package["manifest_path"]).parent
    chosen = licence(package).partition("-")[0].upper()
    files = sorted(f for f in folder.iterdir() if f.name.upper().startswith(("LICENSE", "LICENCE")))
    named = [f for f in files if chosen in f.name.upper()]
    named += [f for f in files if "-" not in f.name]
    return named[0].read_text(encoding="utf-8").strip() if named else ""


def page() -> str:
    """Return the page."""
    found = packages()
    rows = "".join(
        f"| {p['name']} | {p['version']} | {p['license'].replace('/', ' OR ')} "
        f"| <{p['repository']}> |\n"
        for p in found
    )
    texts: dict[str, list[str]] = {}
    for package in found:
        texts.setdefault(text(package), []).append(package["name"])
    parts = [
        f"## {', '.join(names)}\n\n```text\n{content}\n```\n"
        for content, names in texts.items()
        if content
    ]
    return HEAD + rows + "\n" + "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len(packages())} crates\n")
