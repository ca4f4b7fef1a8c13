"""Benchmarks against NumPy, SciPy, scikit-learn, and Torch and DeepSpeed where installed.

python -m benches.peers                              # all
python -m benches.peers adam csr                     # some
python -m benches.peers --quick                      # a few of each family, under a minute
python -m benches.peers --json FILE                  # keep the figures for benches.peers.report

Peaks of this machine are measured first: a copy, multiply-adds in registers, dot products of
bytes. Where a benchmark says what it has to do at least, our time is also given as a fraction of
these.

On a shared machine ``--thread-time`` measures the CPU time of one thread; NumPy's has to be
limited from outside: ``OPENBLAS_NUM_THREADS=1 python -m benches.peers --thread-time conv``.
"""

import argparse
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path

import compressrs as cr
from benches.peers import (
    codec,
    csr,
    csr_real,
    distill,
    few_bytes,
    frameworks,
    measure,
    nn,
    optim,
    prune,
    quantize,
    quantized_conv,
    to_codes,
)
from benches.peers.measure import torch, use_thread_time
from compressrs._threads import configuration
from compressrs.doctor import peaks

ALL = {
    "adam": optim.adam,
    "fused": optim.fused,
    "family": optim.family,
    "overhead": optim.overhead,
    "rows": optim.rows,
    "matrices": optim.matrices,
    "scaling": optim.scaling,
    "options": optim.options,
    "few_bytes": few_bytes.few_bytes,
    "mlp": optim.mlp,
    "csr": csr.csr,
    "csr_training": csr.training,
    "csr_grid": csr.grid,
    "csr_real": csr_real.csr_real,
    "csr_crossover": csr_real.crossover,
    **{f"csr_real_{m}x{k}": functools.partial(csr_real.shape, m, k) for m, k in csr_real.SHAPES},
    **{
        f"csr_real_{m}x{k}_{zeros:.0%}".rstrip("%"): functools.partial(csr_real.cells, m, k, zeros)
        for m, k in csr_real.SHAPES
        for zeros in csr_real.ZEROS
    },
    "distill": distill.distill,
    "top_k": distill.top_k,
    "conv": nn.conv,
    "encoder": nn.encoder,
    "linear": nn.linear,
    "prune": prune.prune,
    "reconstruction": prune.reconstruction,
    "quantized_products": quantize.products,
    "quantized_products_1536x384": functools.partial(quantize.products, quantize.SHAPES[1:2]),
    "quantized_conv": quantized_conv.convolutions,
    "quantize": to_codes.quantize,
    "gptq": to_codes.gptq,
    "codec": codec.codec,
    "torch_optim": frameworks.torch_optim,
    "torch_layers": frameworks.torch_layers,
    "torch_losses": frameworks.torch_losses,
}

#: Short ones, of several families.
QUICK = ("overhead", "fused", "distill", "csr_training", "linear", "quantized_products_1536x384")

#: Variables of the environment that decide how fast contenders are.
SETTINGS = (
    "COMPRESSRS_SIMD",
    "COMPRESSRS_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "OMP_NUM_THREADS",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
)

PACKAGES = (
    "numpy",
    "scipy",
    "scikit-learn",
    "torch",
    "deepspeed",
    "bitsandbytes",
    "torchao",
    "jax",
    "mkl",
    "sparse_dot_mkl",
    "onnxruntime",
    "zstandard",
    "zipnn",
    "z4ai",
)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m benches.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ALL)}; else all")
    parser.add_argument(
        "--thread-time", action="store_true", help="measure the CPU time of one thread"
    )
    parser.add_argument(
        "--quick", action="store_true", help=f"short rounds, and if no NAME is given {QUICK}"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures to this file")
    arguments = parser.parse_args()
    # The others are parts of these.
    parts = ("csr_training", "csr_real_", "quantized_products_")
    all_names = [n for n in ALL if not n.startswith(parts)]
    names = arguments.names or (QUICK if arguments.quick else all_names)
    if unknown := set(names) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ALL)}")
    if arguments.thread_time:
        cr.set_num_threads(1)
        use_thread_time()
    if arguments.quick:
        measure.be_quick()
    cr.show_config()
    versions = {package: version(package) for package in PACKAGES}
    for package, found in versions.items():
        print(f"{package:16} {found or 'not installed'}")
    if torch:
        torch.set_num_threads(cr.get_num_threads())
    ceilings = peaks()
    for name, value in ceilings._asdict().items():
        print(f"{name:16} {value / 1e9:.1f} G/s")
    for name in names:
        measure.begin(name, ceilings)
        ALL[name]()
    if arguments.json:
        run = {
            "command": command(),
            "date": datetime.date.today().isoformat(),
            "machine": processor(),
            "configuration": configuration(),
            "packages": versions,
            "thread_time": arguments.thread_time,
            "peaks": ceilings._asdict(),
            "results": measure.as_dicts(),
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(run, indent=1) + "\n")


def version(package):
    """Return the version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def command():
    """Return the command of this run, with the settings of the environment that it depends on."""
    settings = (
        f"{name}={shlex.quote(os.environ[name])}" for name in SETTINGS if os.environ.get(name)
    )
    return " ".join((*settings, "python -m benches.peers", shlex.join(sys.argv[1:])))


def processor():
    """Return the processor, its family and model, which hypervisors do not hide, and its CPUs."""
    cpus = f"{os.cpu_count()} CPUs"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.processor() or platform.machine()}, {cpus}"
    # Of the first CPU: later lines of the same name would replace it.
    fields = {n.strip(): value.strip() for n, _, value in (x.partition(":") for x in lines[::-1])}
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return f"{name}, {cpus}"


if __name__ == "__main__":
    main()
