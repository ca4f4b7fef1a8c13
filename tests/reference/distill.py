"""Softmax and the distillation loss with its gradient, term by term."""

import numpy as np


def log_softmax(z, temperature=1.0, axis=-1):
    x = (z - z.max(axis=axis, keepdims=True)) / temperature
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def softmax(z, temperature=1.0, axis=-1):
    return np.exp(log_softmax(z, temperature, axis))


def kd_loss(student, teacher, temperature, labels=None, alpha=1.0):
    n = len(student)
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    kl = (np.exp(log_p) * (log_p - log_q)).sum()
    loss = alpha * temperature**2 * kl / n
    grad = alpha * temperature * (np.exp(log_q) - np.exp(log_p)) / n
    if labels is not None:
        rows = np.arange(n)
        loss -= (1 - alpha) * log_softmax(student)[rows, labels].mean()
        onehot = np.zeros_like(student)
        onehot[rows, labels] = 1
        grad += (1 - alpha) * (softmax(student) - onehot) / n
    return loss, grad
