"""Update rules, one function each: new parameter and state after one step.

`state` is a dict that the function fills at the first step, t = 1.
"""

import numpy as np


def sgd(
    theta,
    g,
    state,
    t,
    *,
    lr,
    momentum=0,
    dampening=0,
    weight_decay=0,
    nesterov=False,
    maximize=False,
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    if momentum == 0:
        return theta - lr * g
    state["b"] = g if t == 1 else momentum * state["b"] + (1 - dampening) * g
    d = g + momentum * state["b"] if nesterov else state["b"]
    return theta - lr * d


def momentum(
    theta, g, state, t, *, lr, momentum=0.9, weight_decay=0, nesterov=False, maximize=False
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    state["v"] = momentum * state.get("v", 0) - lr * g
    if nesterov:
        return theta + momentum * state["v"] - lr * g
    return theta + state["v"]


def adam(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    amsgrad=False,
    maximize=False,
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    return theta - _adam_step(g, state, t, lr, betas, eps, amsgrad)


def adamw(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=1e-2,
    amsgrad=False,
    maximize=False,
):
    if maximize:
        g = -g
    theta = theta - lr * weight_decay * theta
    return theta - _adam_step(g, state, t, lr, betas, eps, amsgrad)


def _adam_step(g, state, t, lr, betas, eps, amsgrad):
    beta1, beta2 = betas
    m = state["m"] = beta1 * state.get("m", 0) + (1 - beta1) * g
    v = state["v"] = beta2 * state.get("v", 0) + (1 - beta2) * g**2
    if amsgrad:
        v = state["v_max"] = np.maximum(state.get("v_max", 0), v)
    return lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
