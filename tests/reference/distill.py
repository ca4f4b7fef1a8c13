"""Softmax and the distillation losses with gradients, term by term, in float64."""

import numpy as np


def log_softmax(z, temperature=1.0, axis=-1):
    x = (z - z.max(axis=axis, keepdims=True)) / temperature
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def softmax(z, temperature=1.0, axis=-1):
    return np.exp(log_softmax(z, temperature, axis))


def through_softmax(q, gradient, temperature):
    """Return the gradient for the logits, given that for the probabilities."""
    return q * (gradient - (gradient * q).sum(axis=-1, keepdims=True)) / temperature


def xlogy(x, y):
    """Return x ln y, 0 for x = 0."""
    return np.where(x > 0, x * np.log(np.where(x > 0, y, 1)), 0)


def forward_kl(p, q):
    return (xlogy(p, p) - xlogy(p, q)).sum(axis=-1), -p / q


def reverse_kl(p, q):
    return (xlogy(q, q) - xlogy(q, p)).sum(axis=-1), np.log(q / p) + 1


def js(p, q):
    m = (p + q) / 2
    value = 0.5 * (forward_kl(p, m)[0] + forward_kl(q, m)[0])
    return value, 0.5 * np.log(q / m)


DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl, "js": js}


def soft_term(student, p, temperature, divergence="forward_kl"):
    """Return T^2 D of each row and its gradient."""
    t = np.broadcast_to(temperature, len(student))[:, None]
    q = softmax(student, t)
    value, gradient = DIVERGENCES[divergence](p, q)
    return t[:, 0] ** 2 * value, t**2 * through_softmax(q, gradient, t)


def hard_term(student, labels, smoothing=0.0, class_weight=None):
    """Return the cross-entropy of each row and its gradient; 0 for labels below 0."""
    n, classes = student.shape
    w = np.ones(classes) if class_weight is None else class_weight
    # The smoothed target distribution times the class weights.
    target = np.full((n, classes), smoothing / classes)
    target[np.arange(n), labels] += 1 - smoothing
    target *= w
    target[labels < 0] = 0
    value = -(target * log_softmax(student)).sum(axis=1)
    return value, target.sum(axis=1, keepdims=True) * softmax(student) - target


def teacher_probabilities(teacher, temperature, kind="logits"):
    t = np.reshape(temperature, (-1, 1))
    if isinstance(teacher, list):
        return np.mean([softmax(z, t) for z in teacher], axis=0)
    with np.errstate(divide="ignore"):
        return softmax(np.log(teacher) if kind == "probabilities" else teacher, t)


def kd_loss(
    student,
    teacher,
    temperature,
    labels=None,
    alpha=1.0,
    *,
    teacher_kind="logits",
    divergence="forward_kl",
    label_smoothing=0.0,
    class_weight=None,
    sample_weight=None,
    ignore_index=-100,
    reduction="mean",
):
    """Return the loss (per row for "none") and the gradient."""
    n, classes = student.shape
    v = np.ones(n) if sample_weight is None else sample_weight
    p = teacher_probabilities(teacher, temperature, teacher_kind)
    soft, soft_grad = soft_term(student, p, temperature, divergence)
    hard, hard_grad, of_label = np.zeros(n), np.zeros_like(student), np.zeros(n)
    if labels is not None:
        labels = np.where(labels == ignore_index, -1, labels)
        hard, hard_grad = hard_term(student, labels, label_smoothing, class_weight)
        w = np.ones(classes) if class_weight is None else class_weight
        of_label = np.where(labels >= 0, w[labels], 0)
    mean = reduction == "mean"
    total = (v * of_label).sum()
    a = alpha * v / (v.sum() if mean else 1)
    b = (1 - alpha) * v / (total if mean and total > 0 else 1)
    rows = a * soft + b * hard
    grad = a[:, None] * soft_grad + b[:, None] * hard_grad
    return (rows if reduction == "none" else rows.sum()), grad


def standardized(z):
    return (z - z.mean(axis=1, keepdims=True)) / (z.std(axis=1, keepdims=True) + 1e-7)


def standardized_kd_loss(student, teacher, temperature):
    """Return the soft term of standardized logits and its gradient through the standardization."""
    loss, g = kd_loss(standardized(student), standardized(teacher), temperature)
    center = student - student.mean(axis=1, keepdims=True)
    sigma = student.std(axis=1, keepdims=True)
    d = sigma + 1e-7
    g_mean = g.mean(axis=1, keepdims=True)
    along = (g * center).sum(axis=1, keepdims=True)
    return loss, (g - g_mean) / d - along * center / (d**2 * sigma * student.shape[1])


def top_k_loss(student, teacher, k, temperature):
    """Return the forward KL over the teacher's k largest classes and one bucket for the rest."""
    n, classes = student.shape
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    loss, grad = 0.0, np.zeros_like(student)
    for i in range(n):
        known = np.argsort(-teacher[i], kind="stable")[:k]
        # A matrix that sums classes into buckets.
        merge = np.zeros((classes, k + 1))
        merge[known, np.arange(k)] = 1
        merge[np.setdiff1d(np.arange(classes), known), k] = 1
        value, g = forward_kl(p[i] @ merge, np.maximum(q[i] @ merge, 1e-300))
        loss += temperature**2 * value / n
        grad[i] = temperature**2 / n * through_softmax(q[i], merge @ g, temperature)
    return loss, grad


def dkd_loss(student, teacher, temperature, labels, alpha, beta):
    n, classes = student.shape
    loss, grad = 0.0, np.zeros_like(student)
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    for i, y in enumerate(labels):
        others = np.arange(classes) != y
        b, c = np.array([p[i, y], p[i, others].sum()]), np.array([q[i, y], q[i, others].sum()])
        target = (b * np.log(b / c)).sum()
        p_hat, q_hat = (
            softmax(teacher[i, others], temperature),
            softmax(student[i, others], temperature),
        )
        rest = (p_hat * np.log(p_hat / q_hat)).sum()
        loss += temperature**2 * (alpha * target + beta * rest) / n
        by_probability = np.where(others, -b[1] / c[1], -b[0] / c[0])
        grad[i] = alpha * through_softmax(q[i], by_probability, temperature)
        grad[i, others] += beta * (q_hat - p_hat) / temperature
        grad[i] *= temperature**2 / n
    return loss, grad


def hint_loss(student, teacher):
    n = len(student)
    return ((student - teacher) ** 2).sum() / (2 * n), (student - teacher) / n


def attention_loss(student, teacher):
    n, channels = student.shape[:2]
    s, t = student.reshape(n, channels, -1), teacher.reshape(n, teacher.shape[1], -1)
    q_s, q_t = (s**2).sum(axis=1), (t**2).sum(axis=1)
    length = np.linalg.norm(q_s, axis=1, keepdims=True)
    a_s, a_t = q_s / length, q_t / np.linalg.norm(q_t, axis=1, keepdims=True)
    g = 2 * (a_s - a_t) / a_s.size
    g = (g - (g * a_s).sum(axis=1, keepdims=True) * a_s) / length
    return ((a_s - a_t) ** 2).mean(), (2 * s * g[:, None]).reshape(student.shape)


def huber(x):
    return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5), np.clip(x, -1, 1)


def distances(x):
    difference = x[:, None] - x[None]
    d = np.sqrt((difference**2).sum(axis=-1))
    return difference, d, d[d > 0].mean()


def rkd_distance_loss(student, teacher):
    n = len(student)
    difference, d, mean = distances(student)
    _, d_t, mean_t = distances(teacher)
    value, slope = huber(d / mean - d_t / mean_t)
    slope /= n**2
    # The quotient rule: the mean depends on every distance that is not 0.
    by_distance = slope / mean - (slope * d).sum() / mean**2 / (d > 0).sum()
    unit = difference / np.where(d > 0, d, np.inf)[..., None]
    pull = by_distance[..., None] * unit
    return value.mean(), pull.sum(axis=1) - pull.sum(axis=0)


def rkd_angle_loss(student, teacher):
    n = len(student)

    def directions(x):
        difference = x[None] - x[:, None]
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        return difference / np.where(length > 0, length, np.inf), length

    (e, length), (e_t, _) = directions(student), directions(teacher)
    value, slope = huber(np.einsum("ijd,ikd->ijk", e, e) - np.einsum("ijd,ikd->ijk", e_t, e_t))
    slope /= n**3
    by_e = np.einsum("ijk,ikd->ijd", slope, e) + np.einsum("ikj,ikd->ijd", slope, e)
    along = (by_e * e).sum(axis=-1, keepdims=True)
    by_difference = (by_e - along * e) / np.where(length > 0, length, np.inf)
    return value.mean(), by_difference.sum(axis=0) - by_difference.sum(axis=1)


def correlation(u, v):
    """Return the mean of 1 - Pearson's correlation over the last axis, and its gradient by `u`."""
    du, dv = u - u.mean(axis=-1, keepdims=True), v - v.mean(axis=-1, keepdims=True)
    lu, lv = (np.linalg.norm(d, axis=-1, keepdims=True) for d in (du, dv))
    product = lu * lv + 1e-8
    dot = (du * dv).sum(axis=-1, keepdims=True)
    by_u = dv / product - dot * lv / product**2 * du / np.where(lu > 0, lu, np.inf)
    return 1 - (dot / product).mean(), -by_u / len(u)


def dist_loss(student, teacher, temperature, beta, gamma):
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    inter, by_row = correlation(q, p)
    intra, by_column = correlation(q.T, p.T)
    loss = temperature**2 * (beta * inter + gamma * intra)
    by_q = temperature**2 * (beta * by_row + gamma * by_column.T)
    return loss, through_softmax(q, by_q, temperature)
