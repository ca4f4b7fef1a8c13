"""Fit a sum of sines, whose loss has many minima, by basin hopping over Adam.

Needs: pip install 'compressrs[scipy]'
"""

import numpy as np
from scipy.optimize import basinhopping

import compressrs as cr


def main() -> None:
    t = np.linspace(0, 6, 120)
    target = np.sin(2.0 * t) + 0.5 * np.sin(7.0 * t + 1.0)
    rng = np.random.default_rng(0)
    params = {"rate": rng.uniform(2, 4, 2), "phase": np.zeros(2), "size": np.ones(2)}

    def evaluate():
        angle = np.outer(params["rate"], t) + params["phase"][:, None]
        error = params["size"] @ np.sin(angle) - target
        of_angle = params["size"][:, None] * np.cos(angle) * error
        scale = 2 / len(t)
        gradients = {
            "rate": scale * of_angle @ t,
            "phase": scale * of_angle.sum(1),
            "size": scale * np.sin(angle) @ error,
        }
        return float(np.mean(error**2)), gradients

    fun, x0 = cr.optim.flat_function(evaluate, params)
    adam = cr.optim.scipy_minimizer(lambda x: cr.optim.Adam(x, lr=0.05), steps=150)
    options = {"method": adam, "jac": True}
    found = basinhopping(fun, x0, niter=60, stepsize=2.0, minimizer_kwargs=options, rng=0)
    alone = adam(lambda x: fun(x)[0], x0, jac=lambda x: fun(x)[1]).fun
    fun(found.x)
    print(f"mean squared error: {alone:.4f} by Adam alone, {found.fun:.4f} by basin hopping")
    print("rates:", np.sort(np.abs(params["rate"])).round(2))
    assert found.fun < 0.01 < alone


if __name__ == "__main__":
    main()
