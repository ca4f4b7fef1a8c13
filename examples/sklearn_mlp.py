"""Prune a fitted perceptron of scikit-learn, and ship it to where only NumPy is installed."""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import compressrs as cr

#: What the other machine runs: NumPy, and the file.
PREDICT = """
import sys
import numpy as np

model, inputs, outputs = sys.argv[1:]
arrays = np.load(model)
x = np.load(inputs)
hidden = np.maximum(x @ arrays["0.0"].T + arrays["0.1"], 0)
np.save(outputs, (hidden @ arrays["2.0"].T + arrays["2.1"]).argmax(1))
assert "sklearn" not in sys.modules and "compressrs" not in sys.modules
"""


def main():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y, random_state=0
    )
    mlp = MLPClassifier((128,), random_state=0, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        mlp.fit(x_train, y_train)

    # A quarter of the neurons stays, the weakest ones go, and the rest is trained on.
    model = cr.nn.from_mlp(mlp)
    group = cr.prune.groups(model)[0]
    scores = group.scores(model)
    optimizer = cr.optim.Adam(model.params, lr=3e-3)
    cr.prune.shrink(model, {0: scores > np.quantile(scores, 0.75)}, optimizer)
    rng = np.random.default_rng(0)
    for _ in range(600):
        rows = rng.choice(len(x_train), 64)
        _, gradient = cr.nn.cross_entropy(model(x_train[rows]), y_train[rows])
        model.backward(gradient)
        optimizer.step(model.grads)

    with tempfile.TemporaryDirectory() as folder:
        file, inputs, outputs = (Path(folder) / name for name in ("m.npz", "x.npy", "y.npy"))
        model.eval().export(file)
        np.save(inputs, x_test)
        subprocess.run([sys.executable, "-c", PREDICT, file, inputs, outputs], check=True)
        predicted = np.load(outputs)
        size = file.stat().st_size
    before = mlp.score(x_test, y_test)
    after = float(np.mean(mlp.classes_[predicted] == y_test))
    print(f"{before:.3f} with 128 neurons, {after:.3f} with 32, in a file of {size} bytes")
    assert after > before - 0.02
    assert (predicted == model(x_test).argmax(1)).all()
    return before, after


if __name__ == "__main__":
    main()
