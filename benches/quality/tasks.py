"""Training tasks: digits, a regression, a small language model. Plain NumPy in float32."""

import itertools

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from compressrs.nn import Linear, ReLU, Sequential


class Task:
    """A model, its data, and its loss.

    `weights` are float32 arrays that a caller may overwrite between steps.
    """

    steps: int
    lr: float
    weight_decay: float = 0.0

    def gradients(self, rng):
        """Return the gradients of the loss on a batch, in the order of `weights`."""
        raise NotImplementedError

    def loss(self):
        """Return the loss on held-out data."""
        raise NotImplementedError


def cross_entropy(logits, labels):
    """Return the mean loss and its gradient."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    grad = np.exp(log_p)
    grad[rows, labels] -= 1
    return float(-log_p[rows, labels].mean()), grad / np.float32(len(labels))


class Network(Task):
    """Dense layers with ReLU between."""

    def __init__(self, sizes, rng):
        layers = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [Linear(inputs, outputs, rng=rng), ReLU()]
        self.model = Sequential(*layers[:-1])
        layers = [layer for layer in self.model if isinstance(layer, Linear)]
        self.weights = [a for layer in layers for a in layer.params.values()]
        self._grads = [a for layer in layers for a in layer.grads.values()]

    def backward(self, dy):
        self.model.backward(dy)
        return self._grads


class Digits(Network):
    """Handwritten digits with the network of `compressrs demo` and weight decay."""

    steps, lr, weight_decay = 1500, 1e-3, 0.1

    def __init__(self, seed):
        super().__init__((64, 300, 100, 10), np.random.default_rng(seed))
        pixels, classes = load_digits(return_X_y=True)
        split = train_test_split(
            (pixels / 16).astype(np.float32), classes, random_state=seed, stratify=classes
        )
        self.x, self.x_test, self.y, self.y_test = split

    def gradients(self, rng):
        rows = rng.integers(0, len(self.x), 32)
        return self.backward(cross_entropy(self.model(self.x[rows]), self.y[rows])[1])

    def loss(self):
        return cross_entropy(self.model(self.x_test), self.y_test)[0]


class Regression(Network):
    """Regression of a noisy function of 16 inputs with a network of 64 and 64 hidden units."""

    steps, lr = 10_000, 1e-3

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        super().__init__((16, 64, 64, 1), rng)
        first, second = rng.standard_normal((16, 8)), rng.standard_normal(8)
        self.function = lambda x: np.sin(x @ first / 4) @ second
        self.x_test, self.y_test = self.batch(rng, 4096)

    def batch(self, rng, n):
        x = rng.standard_normal((n, 16)).astype(np.float32)
        y = self.function(x) + 0.3 * rng.standard_normal(n)
        return x, y.astype(np.float32)[:, None]

    def gradients(self, rng):
        x, y = self.batch(rng, 64)
        return self.backward((self.model(x) - y) * np.float32(2 / 64))

    def loss(self):
        return float(np.mean((self.model(self.x_test) - self.y_test) ** 2))


class Language(Task):
    """Prediction of the next character of a text from the preceding 8.

    An embedding, a hidden layer, and one output per character, 96 characters of which some
    are rare: 264,000 parameters. The text is a random sequence of 400 made-up words.
    """

    steps, lr = 3000, 2e-3
    characters, width, context, hidden = 96, 48, 8, 512

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.text = self.make_text(np.random.default_rng(0))
        inputs = self.context * self.width

        def normal(rows, columns):
            return (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)

        self.weights = [
            rng.standard_normal((self.characters, self.width)).astype(np.float32),
            normal(inputs, self.hidden),
            np.zeros(self.hidden, np.float32),
            normal(self.hidden, self.characters),
            np.zeros(self.characters, np.float32),
        ]
        self.train = len(self.text) * 9 // 10

    def make_text(self, rng):
        letters = self.characters - 1
        words = [
            [*np.minimum(rng.zipf(1.3, rng.integers(2, 7)) - 1, letters - 1), letters]
            for _ in range(400)
        ]
        following = [rng.permutation(400)[:20] for _ in words]
        word, text = 0, []
        for _ in range(40_000):
            text += words[word]
            word = following[word][min(int(rng.exponential(4)), 19)]
        return np.array(text)

    def run(self, starts, backward):
        embedding, w1, b1, w2, b2 = self.weights
        x = self.text[starts[:, None] + np.arange(self.context)]
        inputs = embedding[x].reshape(len(x), -1)
        hidden = np.maximum(inputs @ w1 + b1, 0)
        loss, dz = cross_entropy(hidden @ w2 + b2, self.text[starts + self.context])
        if not backward:
            return loss
        dh = (dz @ w2.T) * (hidden > 0)
        rows = np.zeros_like(embedding)
        np.add.at(rows, x, (dh @ w1.T).reshape(*x.shape, -1))
        return [rows, inputs.T @ dh, dh.sum(0), hidden.T @ dz, dz.sum(0)]

    def gradients(self, rng):
        return self.run(rng.integers(0, self.train - self.context, 64), backward=True)

    def loss(self):
        return self.run(np.arange(self.train, len(self.text) - self.context), backward=False)


TASKS = {"digits": Digits, "regression": Regression, "language model": Language}
