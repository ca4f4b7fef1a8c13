"""The examination of an installation."""

import importlib.metadata
import importlib.util
import json
import shutil
import sys

import pytest

from compressrs import _core, doctor
from compressrs.cli import main
from compressrs.doctor import bits, extras, messages


def run(capsys, *arguments):
    """Return the exit code of a command and what it printed."""
    code = main(["doctor", *arguments])
    return code, capsys.readouterr()


@pytest.fixture
def quick(monkeypatch):
    """Leave out what takes seconds and is tested by itself."""
    same = {
        (level, threads): {"optim": "a", "nn": "b"} for level in ("x", "y") for threads in (1, 3)
    }
    monkeypatch.setattr(doctor, "check", lambda: same)
    monkeypatch.setattr(doctor, "mpi", lambda: None)
    monkeypatch.setattr(doctor, "tried", list)
    monkeypatch.setattr(doctor, "peaks", lambda: doctor.Peaks(1e9, 2e9, 3e9))
    monkeypatch.setattr(
        doctor, "kernels", lambda _: [doctor.Kernel("step", 1e-3, "copy", 5e5, 0.5)]
    )
    return same


def test_the_command_examines_this_machine(capsys):
    code, printed = run(capsys, "--json")
    report = json.loads(printed.out)
    assert code == 0
    assert report["differing"] == []
    assert report["levels"] == sorted(_core.simd_levels())
    assert report["digests"] == doctor.digests()
    assert all(value > 0 for value in report["peaks"].values())
    assert all(kernel["fraction"] > 0 for kernel in report["kernels"])


def test_other_bits_are_named_and_end_with_1(capsys, quick):
    assert run(capsys)[0] == 0
    quick["y", 3] = {"optim": "a", "nn": "c"}
    code, printed = run(capsys)
    assert code == 1
    assert "y                other bits: nn" in printed.out
    assert "x                the same bits" in printed.out


def test_a_level_that_fails_is_reported(capsys, quick, monkeypatch):
    def check():
        return {("x", 1): bits._in_process("no such level", 1)}

    monkeypatch.setattr(doctor, "check", check)
    code, printed = run(capsys)
    assert code == 1
    assert "no such level with 1 thread(s)" in printed.err and "COMPRESSRS_SIMD" in printed.err


def test_packages_of_extras_are_listed(monkeypatch):
    requirements = [
        "numpy>=2.1",
        "torch>=2.6; extra == 'torch'",
        'no-such-package[x]>=1,<2; extra == "cli"',
        'tomli>=2; python_version < "3.99" and extra == "cli"',
        'older>=2; python_version < "3.9" and extra == "cli"',
        'newer>=2; python_full_version < "3.9" and extra == "cli"',
        "compressrs[cli]; extra == 'demo'",
        "pytest>=8; extra == 'test'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    found = doctor.packages()
    assert [package[:3] for package in found] == [
        ("cli", "no-such-package", ">=1,<2"),
        ("cli", "tomli", ">=2"),
        ("torch", "torch", ">=2.6"),
    ]
    assert found[0].installed is None


def test_the_table_says_how_to_install_what_is_missing(capsys, quick, monkeypatch):
    found = [
        doctor.Package("cli", "rich", ">=13", "14.0"),
        doctor.Package("mpi", "mpi4py", ">=4", None),
    ]
    monkeypatch.setattr(doctor, "packages", lambda: found)
    printed = run(capsys)[1].out
    assert "14.0" in printed and "- (pip install 'compressrs[mpi]')" in printed


def test_packages_that_cannot_be_imported_are_reported(capsys, quick, monkeypatch, tmp_path):
    for name, line in {
        "whole": "x = 1",
        "sklearn": "x = 1",
        "damaged": "raise ImportError('libmpi.so: cannot open shared object file')",
        "silent": "import sys; sys.exit(3)",
        "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
        "slow": "import time; time.sleep(60)",
    }.items():
        (tmp_path / f"{name}.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    names = ["whole", "scikit-learn", "damaged", "silent", "crashing"]
    found = [doctor.Package("x", name, ">=1", "1.5") for name in names]
    found.append(doctor.Package("x", "missing", ">=1", None))
    tried = extras.tried(found)
    errors = {package.name: package.error for package in tried}
    assert [package._replace(error=None) for package in tried] == found
    assert errors["whole"] is errors["scikit-learn"] is errors["missing"] is None
    assert errors["damaged"] == "ImportError: libmpi.so: cannot open shared object file"
    assert errors["silent"] == "import silent ended with 3"
    if sys.platform != "win32":
        assert errors["crashing"] == "import crashing was ended by SIGABRT"
    slow = doctor.Package("x", "slow", ">=1", "1.5")
    assert extras.tried([slow], timeout=0.2)[0].error == "import slow did not end in 0.2 s"
    monkeypatch.setattr(doctor, "packages", lambda: tried)
    printed = " ".join(run(capsys)[1].out.split())
    assert "1.5, cannot be imported" in printed
    assert "damaged 1.5 cannot be imported: ImportError: libmpi.so" in printed
    assert "pip install --force-reinstall damaged" in printed


def test_modules_of_all_packages_are_known():
    found = [package for package in doctor.packages() if package.installed is not None]
    for package in found:
        module = extras._MODULES.get(package.name, package.name.replace("-", "_"))
        assert importlib.util.find_spec(module) is not None, package.name


def test_without_metadata_nothing_is_listed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert doctor.packages() == []


@pytest.fixture
def launcher(monkeypatch, tmp_path):
    """Return what puts a program of some lines in the place of mpiexec."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    def put(*lines):
        path = tmp_path / "mpiexec"
        path.write_text("\n".join(("#!/bin/sh", *lines)))
        path.chmod(0o755)
        monkeypatch.setattr(shutil, "which", lambda name, path=None: str(tmp_path / name))

    return put


def test_without_mpi4py_or_mpiexec_it_is_said(monkeypatch, capsys, quick):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert messages.mpi() is None
    assert run(capsys)[1].out.count("pip install 'compressrs[mpi]'") == 1
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    found = messages.mpi()
    assert not found.works and "mpiexec is not on the path" in found.said


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher is a script of a shell")
def test_a_launcher_that_fails_is_reported(launcher, monkeypatch, capsys, quick):
    launcher("echo first >&2", "echo no such host >&2", "exit 3")
    found = messages.mpi()
    assert found == (False, found.said) and found.said.endswith("-n 2 failed: no such host")
    monkeypatch.setattr(doctor, "mpi", lambda: found)
    assert "does not work" in run(capsys)[1].out
    launcher("exit 1")
    assert messages.mpi().said.endswith("it said nothing")
    launcher("exec sleep 60")
    assert messages.mpi(timeout=0.2).said.endswith("did not end in 0.2 s")
    launcher("echo MPICH 4")
    assert messages.mpi() == (True, "MPICH 4")
