"""Benchmarks against NumPy, SciPy, scikit-learn, and Torch and DeepSpeed where installed.

python -m benches.peers            # all
python -m benches.peers adam csr   # some

On a shared machine ``--thread-time`` measures the CPU time of one thread; NumPy's has to be
limited from outside: ``OPENBLAS_NUM_THREADS=1 python -m benches.peers --thread-time conv``.
"""

import argparse
import importlib.metadata

import compressrs as cr
from benches.peers import codec, csr, distill, few_bytes, nn, optim, prune, quantize, to_codes
from benches.peers.measure import torch, use_thread_time

ALL = {
    "adam": optim.adam,
    "fused": optim.fused,
    "family": optim.family,
    "overhead": optim.overhead,
    "scaling": optim.scaling,
    "options": optim.options,
    "few_bytes": few_bytes.few_bytes,
    "mlp": optim.mlp,
    "csr": csr.csr,
    "csr_grid": csr.grid,
    "distill": distill.distill,
    "top_k": distill.top_k,
    "conv": nn.conv,
    "encoder": nn.encoder,
    "linear": nn.linear,
    "prune": prune.prune,
    "reconstruction": prune.reconstruction,
    "quantized_products": quantize.products,
    "quantize": to_codes.quantize,
    "gptq": to_codes.gptq,
    "codec": codec.codec,
}


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
    arguments = parser.parse_args()
    names = arguments.names or list(ALL)
    if unknown := set(names) - set(ALL):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(ALL)}")
    if arguments.thread_time:
        cr.set_num_threads(1)
        use_thread_time()
    cr.show_config()
    for package in (
        "scipy",
        "scikit-learn",
        "torch",
        "deepspeed",
        "bitsandbytes",
        "torchao",
        "onnxruntime",
        "zstandard",
        "zipnn",
        "z4ai",
    ):
        try:
            print(f"{package:16} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{package:16} not installed")
    if torch:
        torch.set_num_threads(cr.get_num_threads())
    for name in names:
        ALL[name]()


main()
