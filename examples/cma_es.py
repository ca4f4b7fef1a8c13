"""Train a small network on what has no gradient: the number of mistakes on a spiral.

Needs: pip install 'compressrs[cmaes]'
"""

import numpy as np

import compressrs as cr


def main() -> None:
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 1.5 * np.pi, 200)
    label = np.arange(200) % 2
    radius = 0.3 + angle / 4
    turned = angle + np.pi * label
    x = np.stack([radius * np.cos(turned), radius * np.sin(turned)], 1)
    params = {
        "hidden": rng.standard_normal((2, 8)),
        "bias": rng.standard_normal(8),
        "out": rng.standard_normal(8),
    }

    def mistakes():
        score = np.tanh(x @ params["hidden"] + params["bias"]) @ params["out"]
        return float(np.mean((score > 0) != label))

    before = mistakes()
    found = cr.optim.cma_es(mistakes, params, sigma=1.0, generations=150, rng=0)
    taken = len(found.losses)
    print(f"mistakes: {before:.0%} at first, {found.loss:.0%} after {taken} generations")
    assert mistakes() == found.loss < 0.1


if __name__ == "__main__":
    main()
