"""Update rules, one function each: new parameter and state after one step.

`state` is a dict that the function fills at the first step, t = 1.
"""

import functools

import numpy as np


def _average(old, new, keep):
    """Return a moving average; where nothing is kept, the new value, whatever the old one was."""
    return new if keep == 0 else keep * old + (1 - keep) * new


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


def _may_be_cautious(decay, decoupled):
    """Give a rule a cautious variant; what its weight decay is by default."""

    def decorated(rule):
        @functools.wraps(rule)
        def stepped(theta, g, state, t, *, cautious=False, **kwargs):
            new = rule(theta, g, state, t, **kwargs)
            if not cautious:
                return new
            g = -g if kwargs.get("maximize") else g
            amount = kwargs.get("weight_decay", decay)
            direct = kwargs.get("decoupled_weight_decay", decoupled)
            base, g = _decayed(theta, g, kwargs["lr"], amount, direct)
            step = base - new
            agree = step * g > 0
            return base - theta.size / (agree.sum() + 1) * np.where(agree, step, 0)

        return stepped

    return decorated


@_may_be_cautious(0, False)
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
    decoupled_weight_decay=False,
):
    if maximize:
        g = -g
    theta, g = _decayed(theta, g, lr, weight_decay, decoupled_weight_decay)
    return theta - _adam_step(g, state, t, lr, betas, eps, amsgrad)


@_may_be_cautious(0.01, True)
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
    return adam(
        theta,
        g,
        state,
        t,
        lr=lr,
        betas=betas,
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        maximize=maximize,
        decoupled_weight_decay=True,
    )


def _adam_step(g, state, t, lr, betas, eps, amsgrad):
    beta1, beta2 = betas
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    v = state["v"] = _average(state.get("v", 0), g**2, beta2)
    if amsgrad:
        v = state["v_max"] = np.maximum(state.get("v_max", 0), v)
    return lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)


def adagrad(
    theta,
    g,
    state,
    t,
    *,
    lr,
    lr_decay=0,
    weight_decay=0,
    initial_accumulator_value=0,
    eps=1e-10,
    maximize=False,
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    state["sum"] = state.get("sum", initial_accumulator_value) + g**2
    return theta - lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(state["sum"]) + eps)


def rmsprop(
    theta,
    g,
    state,
    t,
    *,
    lr,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0,
    momentum=0,
    centered=False,
    maximize=False,
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    variance = state["s"] = _average(state.get("s", 0), g**2, alpha)
    if centered:
        state["mean"] = _average(state.get("mean", 0), g, alpha)
        variance = np.maximum(variance - state["mean"] ** 2, 0)
    d = g / (np.sqrt(variance) + eps)
    if momentum > 0:
        d = state["buf"] = momentum * state.get("buf", 0) + d
    return theta - lr * d


def adadelta(theta, g, state, t, *, lr, rho=0.9, eps=1e-6, weight_decay=0, maximize=False):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    s = state["s"] = _average(state.get("s", 0), g**2, rho)
    delta = np.sqrt(state.get("a", 0) + eps) / np.sqrt(s + eps) * g
    state["a"] = _average(state.get("a", 0), delta**2, rho)
    return theta - lr * delta


def adamax(theta, g, state, t, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, maximize=False):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    beta1, beta2 = betas
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    u = state["u"] = np.maximum(beta2 * state.get("u", 0), np.abs(g) + eps)
    return theta - lr / (1 - beta1**t) * m / u


def _decayed(theta, g, lr, weight_decay, decoupled):
    """Return the parameter and gradient after either kind of weight decay."""
    if decoupled:
        return theta - lr * weight_decay * theta, g
    return theta, g + weight_decay * theta


@_may_be_cautious(0, False)
def nadam(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    momentum_decay=4e-3,
    decoupled_weight_decay=False,
    maximize=False,
):
    if maximize:
        g = -g
    theta, g = _decayed(theta, g, lr, weight_decay, decoupled_weight_decay)
    beta1, beta2 = betas
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in (t, t + 1))
    # PyTorch keeps the product in single precision.
    product = state["product"] = state.get("product", np.float32(1)) * np.float32(mu)
    product = float(product)
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    v = state["v"] = _average(state.get("v", 0), g**2, beta2)
    m_hat = mu_next * m / (1 - product * mu_next) + (1 - mu) * g / (1 - product)
    return theta - lr * m_hat / (np.sqrt(v / (1 - beta2**t)) + eps)


@_may_be_cautious(0, False)
def radam(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    decoupled_weight_decay=False,
    maximize=False,
):
    if maximize:
        g = -g
    theta, g = _decayed(theta, g, lr, weight_decay, decoupled_weight_decay)
    beta1, beta2 = betas
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    v = state["v"] = _average(state.get("v", 0), g**2, beta2)
    m_hat = m / (1 - beta1**t)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return theta - lr * m_hat
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    return theta - lr * m_hat * r * np.sqrt(1 - beta2**t) / (np.sqrt(v) + eps)


@_may_be_cautious(0.001, True)
def lion(theta, g, state, t, *, lr, betas=(0.9, 0.99), weight_decay=1e-3, maximize=False):
    if maximize:
        g = -g
    beta1, beta2 = betas
    m = state.get("m", 0)
    state["m"] = _average(m, g, beta2)
    return theta - lr * (np.sign(_average(m, g, beta1)) + weight_decay * theta)


@_may_be_cautious(0, True)
def ademamix(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999, 0.9999),
    alpha=5,
    eps=1e-8,
    weight_decay=0,
    warmup=0,
    maximize=False,
):
    if maximize:
        g = -g
    beta1, beta2, beta3 = betas
    if t < warmup:
        # The number of steps in which an average loses half grows linearly.
        start, end = (np.log(0.5) / np.log(beta) if beta else 0.0 for beta in (beta1, beta3))
        beta3 = 0.5 ** (1 / (start + t / warmup * (end - start))) if beta3 else beta3
        alpha = alpha * t / warmup
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    v = state["v"] = _average(state.get("v", 0), g**2, beta2)
    slow = state["slow"] = _average(state.get("slow", 0), g, beta3)
    d = (m / (1 - beta1**t) + alpha * slow) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return theta - lr * (d + weight_decay * theta)


def prodigy(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    decoupled_weight_decay=True,
    use_bias_correction=False,
    safeguard_warmup=False,
    d0=1e-6,
    d_coef=1,
    growth_rate=np.inf,
    maximize=False,
):
    if maximize:
        g = -g
    beta1, beta2 = betas
    beta3 = np.sqrt(beta2)
    d, start = state.get("d", d0), state.setdefault("start", theta.copy())
    rate = d * lr
    if use_bias_correction:
        rate *= np.sqrt(1 - beta2**t) / (1 - beta1**t)
    if not decoupled_weight_decay:
        g = g + weight_decay * theta
    r = beta3 * state.get("r", 0) + d / d0 * rate * np.sum(g * (start - theta))
    s = beta3 * state.get("s", 0) + d / d0 * (d if safeguard_warmup else rate) * g
    m = state["m"] = _average(state.get("m", 0), d * g, beta1)
    v = state["v"] = _average(state.get("v", 0), (d * g) ** 2, beta2)
    state["s"] = s
    if not np.abs(s).sum():
        return theta
    state["r"] = r
    found = d_coef * r / np.abs(s).sum()
    first = max(d, found) if d == d0 else d
    state["largest"] = max(state.get("largest", d0), found)
    state["d"] = min(state["largest"], first * growth_rate)
    if decoupled_weight_decay:
        theta = theta - rate * weight_decay * theta
    return theta - rate * m / (np.sqrt(v) + state["d"] * eps)


def lamb(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-6,
    eps_root=0,
    weight_decay=0,
    maximize=False,
):
    if maximize:
        g = -g
    beta1, beta2 = betas
    m = state["m"] = _average(state.get("m", 0), g, beta1)
    v = state["v"] = _average(state.get("v", 0), g**2, beta2)
    u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t) + eps_root) + eps)
    u = u + weight_decay * theta
    norms = np.linalg.norm(theta), np.linalg.norm(u)
    ratio = norms[0] / norms[1] if all(norms) else 1
    return theta - lr * ratio * u


def rprop(theta, g, state, t, *, lr, etas=(0.5, 1.2), step_sizes=(1e-6, 50), maximize=False):
    if maximize:
        g = -g
    agreement = g * state.get("prev", 0)
    factor = np.where(agreement > 0, etas[1], np.where(agreement < 0, etas[0], 1))
    size = state["size"] = np.clip(state.get("size", lr) * factor, *step_sizes)
    g = state["prev"] = np.where(agreement < 0, 0, g)
    return theta - np.sign(g) * size


def asgd(
    theta,
    g,
    state,
    t,
    *,
    lr,
    lambd=1e-4,
    alpha=0.75,
    t0=1e6,
    weight_decay=0,
    maximize=False,
):
    if maximize:
        g = -g
    g = g + weight_decay * theta
    # PyTorch keeps both in single precision.
    eta = float(state.get("eta", np.float32(lr)))
    theta = (1 - lambd * eta) * theta - eta * g
    state["ax"] = theta if t == 1 else state["ax"] + float(state["mu"]) * (theta - state["ax"])
    state["eta"] = np.float32(lr / (1 + lambd * lr * t) ** alpha)
    state["mu"] = np.float32(1 / max(1, t - t0))
    return theta


def adafactor(
    theta,
    g,
    state,
    t,
    *,
    lr,
    beta2_decay=-0.8,
    eps=(None, 1e-3),
    d=1.0,
    weight_decay=0,
    beta1=None,
    maximize=False,
):
    if theta.size == 0:
        return theta
    if maximize:
        g = -g
    eps1 = np.finfo(theta.dtype).eps if eps[0] is None else eps[0]
    b = t**beta2_decay
    alpha = max(eps[1], np.sqrt(np.mean(theta**2))) * min(lr, 1 / np.sqrt(t))
    theta = (1 - lr * weight_decay) * theta

    def average(name, new):
        state[name] = _average(state.get(name, 0), new, 1 - b)
        return state[name]

    if theta.ndim > 1:
        row = average("row", np.mean(g**2, axis=-1, keepdims=True))
        column = average("column", np.mean(g**2, axis=-2, keepdims=True))
        v = row * column / np.maximum(np.mean(row, axis=-2, keepdims=True), eps1)
    else:
        v = average("v", g**2)
    u = g / np.sqrt(np.maximum(v, eps1**2))
    u = alpha / max(1, np.sqrt(np.mean(u**2)) / d) * u
    if beta1 is not None:
        u = state["m"] = _average(state.get("m", 0), u, beta1)
    return theta - u


def muon(
    theta,
    g,
    state,
    t,
    *,
    lr,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.775, 2.0315),
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn=None,
    maximize=False,
):
    if theta.size == 0:
        return theta
    if maximize:
        g = -g
    buf = state["buf"] = _average(state.get("buf", 0), g, momentum)
    u = momentum * buf + (1 - momentum) * g if nesterov else buf
    rows, columns = u.shape
    x = u.T if rows > columns else u
    x = x / max(np.linalg.norm(x), eps)
    a, b, c = ns_coefficients
    for _ in range(ns_steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if rows > columns else x
    adjustment = {
        None: np.sqrt(max(1, rows / columns)),
        "original": np.sqrt(max(1, rows / columns)),
        "match_rms_adamw": 0.2 * np.sqrt(max(rows, columns)),
        "spectral_unclamped": np.sqrt(rows / columns),
    }[adjust_lr_fn]
    return (1 - lr * weight_decay) * theta - lr * adjustment * x


def of_rows(rule, theta, rows, values, state, t, **kwargs):
    """Return the parameter after a step that leaves out the rows without a gradient."""
    gradient = np.zeros_like(theta)
    for row, value in zip(rows, values, strict=True):
        gradient[row] += value
    before = dict(state)
    stepped = rule(theta, gradient, state, t, **kwargs)
    rest = np.ones(len(theta), bool)
    rest[rows] = False
    for name, old in before.items():
        if np.ndim(old):
            state[name] = state[name].copy()
            state[name][rest] = old[rest]
    stepped[rest] = theta[rest]
    return stepped


def blocks(shape, block_size):
    """Return the row and column slices of the blocks of a matrix, as equal as can be."""

    def slices(n):
        if n == 0:
            return []
        size = -(-n // -(-n // block_size))
        return [slice(start, min(n, start + size)) for start in range(0, n, size)]

    return [(i, j) for i in slices(shape[0]) for j in slices(shape[1])]


def inverse_fourth_root(a, eps):
    values, vectors = np.linalg.eigh(a)
    values = np.maximum(values, np.finfo(a.dtype).eps * max(values[-1], 0)) + eps
    return (vectors * values**-0.25) @ vectors.T


def shampoo(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0,
    matrix_eps=1e-12,
    precondition_frequency=10,
    block_size=512,
    grafting="adam",
    maximize=False,
):
    if theta.size == 0:
        return theta
    if maximize:
        g = -g
    beta1, beta2 = betas
    weight, correction = (1, 1) if beta2 == 1 else (1 - beta2, 1 / (1 - beta2**t))
    v = state["v"] = beta2 * state.get("v", 0) + weight * g**2
    a = g / (np.sqrt(v * correction) + eps)
    u = a
    if g.ndim > 1:
        shape = (g.shape[0], g.size // g.shape[0])
        g, a, u = g.reshape(shape), a.reshape(shape), np.empty(shape)
        for block in blocks(shape, block_size):
            x, own = g[block], state.setdefault(str(block), {})
            for side, square in (("left", x @ x.T), ("right", x.T @ x)):
                own[side] = beta2 * own.get(side, 0) + weight * square
                if (t - 1) % precondition_frequency == 0:
                    own[side + "_root"] = inverse_fourth_root(own[side] * correction, matrix_eps)
            y = own["left_root"] @ x @ own["right_root"]
            norm = np.linalg.norm
            if grafting != "none":
                y *= norm(a[block] if grafting == "adam" else x) / norm(y)
            u[block] = y
        u = u.reshape(theta.shape)
    m = state["m"] = _average(state.get("m", 0), u, beta1)
    return (1 - lr * weight_decay) * theta - lr / (1 - beta1**t) * m


def soap(
    theta,
    g,
    state,
    t,
    *,
    lr,
    betas=(0.95, 0.95),
    shampoo_beta=None,
    eps=1e-8,
    weight_decay=0.01,
    precondition_frequency=10,
    block_size=512,
    maximize=False,
):
    if theta.size == 0:
        return theta
    if maximize:
        g = -g
    beta1, beta2 = betas
    beta = beta2 if shampoo_beta is None else shampoo_beta
    s = t - 1
    g = g.reshape(len(g), -1) if g.ndim > 1 else g
    if s > 0:
        m = state["m"] = _average(state.get("m", 0), g, beta1)
        v = state.setdefault("v", np.zeros(g.shape))
    u = np.zeros(g.shape)
    for block in blocks(g.shape, block_size) if g.ndim > 1 else [...]:
        own, x = state.setdefault(str(block), {}), g[block]

        def rotated(x, back=False, own=own):
            if g.ndim < 2:
                return x
            left, right = own["left_basis"], own["right_basis"]
            return left @ x @ right.T if back else left.T @ x @ right

        if s > 0:
            v[block] = _average(v[block], rotated(x) ** 2, beta2)
            u[block] = rotated(rotated(m[block]) / (np.sqrt(v[block]) + eps), back=True)
        if g.ndim < 2:
            continue
        for side, square in (("left", x @ x.T), ("right", x.T @ x)):
            own[side] = _average(own.get(side, 0), square, beta)
            if s == 0:
                own[side + "_basis"] = np.linalg.eigh(own[side])[1][:, ::-1]
            elif s % precondition_frequency == 0:
                basis = own[side + "_basis"]
                product = own[side] @ basis
                order = np.argsort(-(basis * product).sum(0), kind="stable")
                v[block] = v[block][order] if side == "left" else v[block][:, order]
                own[side + "_basis"] = np.linalg.qr(product[:, order])[0]
    if s == 0:
        return theta
    rate = lr * np.sqrt(1 - beta2**s) / (1 - beta1**s)
    return (1 - lr * weight_decay) * (theta - rate * u.reshape(theta.shape))


def norm(arrays, order=2):
    """Return the norm over all arrays together."""
    return np.linalg.norm(np.concatenate([np.ravel(a).astype(np.float64) for a in arrays]), order)
