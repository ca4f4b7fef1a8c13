"""``compressrs doctor``."""

from __future__ import annotations

import json as js
from typing import Any

import typer
from rich.table import Table

from compressrs.cli._options import Json
from compressrs.cli._output import complain, console, write

_UNITS = {"copy": "GB/s", "multiply_adds": "G/s", "dot_products": "G/s"}
_PEAKS = {
    "copy": "copy (read and written)",
    "multiply_adds": "multiply-adds, float32",
    "dot_products": "multiply-adds, int8",
}


def run(json: Json = False) -> None:
    """Examine this installation: packages, MPI, instruction sets, bits and speed.

    Takes about ten seconds of CPU time.

    Ends with 1 if an instruction set or a number of threads gives other bits.

    compressrs doctor
    """
    from compressrs import doctor
    from compressrs._threads import configuration

    try:
        digests = doctor.check()
    except RuntimeError as error:
        complain(str(error))
        raise typer.Exit(1) from None
    reference = next(iter(digests.values()))
    differing = sorted(
        {
            (level, family)
            for (level, _), found in digests.items()
            for family in found
            if found[family] != reference[family]
        }
    )
    messages = doctor.mpi()
    ceilings = doctor.peaks()
    report: dict[str, Any] = {
        "configuration": configuration(),
        "packages": [package._asdict() for package in doctor.tried(doctor.packages())],
        "mpi": None if messages is None else messages._asdict(),
        "levels": sorted({level for level, _ in digests}),
        "digests": reference,
        "differing": differing,
        "peaks": ceilings._asdict(),
        "kernels": [kernel._asdict() for kernel in doctor.kernels(ceilings)],
    }
    if json:
        write(f"{js.dumps(report, indent=2)}\n")
    else:
        _print(report)
    if differing:
        raise typer.Exit(1)


def _print(report: dict[str, Any]) -> None:
    out = console()
    for name, value in report["configuration"].items():
        out.print(f"{name:16} {value}", highlight=False)
    if report["packages"]:
        table = Table(
            "extra", "package", "needed", "installed", title="Extras", title_justify="left"
        )
        for package in report["packages"]:
            there = package["installed"] or f"- (pip install 'compressrs[{package['extra']}]')"
            if package["error"] is not None:
                there += ", cannot be imported"
            table.add_row(package["extra"], package["name"], package["needed"], there)
        out.print(table)
        for package in report["packages"]:
            if package["error"] is not None:
                out.print(
                    f"{package['name']} {package['installed']} cannot be imported: "
                    f"{package['error']} (pip install --force-reinstall {package['name']})",
                    highlight=False,
                )
    messages = report["mpi"]
    if messages is None:
        out.print("MPI              - (pip install 'compressrs[mpi]')")
    else:
        verdict = "two processes agree" if messages["works"] else "does not work"
        out.print(f"MPI              {verdict}: {messages['said']}", highlight=False)
    for level in report["levels"]:
        families = [family for where, family in report["differing"] if where == level]
        verdict = f"other bits: {', '.join(families)}" if families else "the same bits"
        out.print(f"{level:16} {verdict}, 1 and 3 threads", highlight=False)
    for name, value in report["peaks"].items():
        out.print(f"{_PEAKS[name]:24} {value / 1e9:10.1f} {_UNITS[name]}", highlight=False)
    table = Table("kernel", title="Speed", title_justify="left")
    for column in ("ms", "speed", "of the peak"):
        table.add_column(column, justify="right")
    for kernel in report["kernels"]:
        speed = kernel["work"] / kernel["seconds"] / 1e9
        table.add_row(
            kernel["name"],
            f"{kernel['seconds'] * 1e3:.2f}",
            f"{speed:.1f} {_UNITS[kernel['binds']]}",
            f"{kernel['fraction']:.2f}{' *' if kernel['fraction'] > 1 else ''}",
        )
    out.print(table)
    if any(kernel["fraction"] > 1 for kernel in report["kernels"]):
        out.print("* above the peak: the machine was busy when that was measured; run again")
