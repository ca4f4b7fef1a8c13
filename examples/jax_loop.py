"""Train a model of JAX: gradients by `jax.grad`, updates in place, pruned as it trains."""

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import compressrs as cr

STEPS = 400


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"w": jax.random.normal(first, (64, 128)) / 8, "b": jnp.zeros(128)},
        "out": {"w": jax.random.normal(second, (128, 10)) / 11, "b": jnp.zeros(10)},
    }


def logits(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]


def loss(params, x, y):
    return -jnp.mean(jax.nn.log_softmax(logits(params, x))[jnp.arange(len(y)), y])


def main():
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        (x / 16).astype(np.float32), y, random_state=0
    )
    # The pytree as it comes, its leaves as arrays that can be updated.
    params = jax.tree.map(np.array, init(jax.random.key(0)))
    gradients = jax.jit(jax.value_and_grad(loss))
    optimizer = cr.optim.AdamW(params, lr=5e-3, state_dtype="int8")
    scheduler = cr.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    weights = [params["hidden"]["w"], params["out"]["w"]]
    schedule = cr.prune.CubicSchedule(final=0.9, begin=50, end=250, frequency=10)
    pruner = cr.prune.MagnitudePruner(weights, schedule, optimizer=optimizer)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.choice(len(x_train), 64)
        _, grads = gradients(params, x_train[rows], y_train[rows])
        optimizer.step(grads, max_grad_norm=1.0)
        scheduler.step()
        pruner.step()
    accuracy = float(np.mean(np.argmax(logits(params, x_test), 1) == y_test))
    zeros = np.mean(np.concatenate([w.ravel() for w in weights]) == 0)
    print(f"accuracy {accuracy:.3f} with {zeros:.1%} zeros")
    assert accuracy > 0.93 and zeros > 0.899
    return accuracy, zeros


if __name__ == "__main__":
    main()
