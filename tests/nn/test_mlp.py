"""scikit-learn's perceptrons as models, and back."""

import copy

import numpy as np
import pytest

import compressrs as cr

pytest.importorskip("sklearn")

from sklearn.neural_network import MLPClassifier, MLPRegressor


def fitted(kind=MLPClassifier, outputs=3, dtype=np.float64, **kwargs):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 5)).astype(dtype)
    y = np.array(["c", "a", "b", "d"])[:outputs][rng.integers(0, outputs, 120)]
    if kind is MLPRegressor:
        y = x[:, :outputs].ravel() if outputs == 1 else x[:, :outputs]
    # Stops after a few epochs without a warning, since none improves the loss by so much.
    settings = {"tol": 9.0, "max_iter": 50, **kwargs}
    return kind(**{"hidden_layer_sizes": (11, 7), "random_state": 0, **settings}).fit(x, y), x


def predictions(model, mlp, x):
    outputs = model.eval()(x)
    if isinstance(mlp, MLPClassifier):
        return cr.distill.softmax(outputs)
    return outputs[:, 0] if mlp.n_outputs_ == 1 else outputs


def expected(mlp, x):
    return mlp.predict_proba(x) if isinstance(mlp, MLPClassifier) else mlp.predict(x)


CASES = [
    pytest.param(kind, outputs, dtype, id=f"{kind.__name__}-{outputs}-{np.dtype(dtype).name}")
    for kind, outputs in [
        (MLPClassifier, 2),
        (MLPClassifier, 4),
        (MLPRegressor, 1),
        (MLPRegressor, 3),
    ]
    for dtype in (np.float32, np.float64)
]


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize(("kind", "outputs", "dtype"), CASES)
def test_predictions_are_the_same_there_and_back(kind, outputs, dtype, activation):
    mlp, x = fitted(kind, outputs, dtype, activation=activation)
    model = cr.nn.from_mlp(mlp)
    assert model[0].weight.dtype == mlp.coefs_[0].dtype
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(
        predictions(model, mlp, x), expected(mlp, x), rtol=tolerance, atol=tolerance
    )
    if kind is MLPClassifier:
        np.testing.assert_array_equal(mlp.classes_[model(x).argmax(axis=1)], mlp.predict(x))
    back = cr.nn.to_mlp(model, mlp)
    np.testing.assert_array_equal(expected(back, x), expected(mlp, x))
    assert back.hidden_layer_sizes == (11, 7)
    # Copies: neither changes the other.
    before = [w.copy() for w in mlp.coefs_]
    model[0].weight[...] = 0
    back.coefs_[0][...] = 0
    np.testing.assert_array_equal(mlp.coefs_[0], before[0])


@pytest.mark.parametrize(("kind", "outputs", "dtype"), CASES)
def test_a_model_that_was_pruned_shrunk_and_trained_goes_back(kind, outputs, dtype):
    mlp, x = fitted(kind, outputs, dtype)
    model = cr.nn.from_mlp(mlp)
    opt = cr.optim.Adam(model.params, lr=1e-3)
    keep = np.arange(11) % 3 > 0
    cr.prune.shrink(model, {0: keep}, opt)
    for _ in range(5):
        model.backward(np.ones_like(model(x)))
        opt.step(model.grads)
    last = 2 * (len(mlp.coefs_) - 1)
    mask = cr.prune.magnitude_mask(model[2].weight, 0.5)
    sparse = cr.nn.Sequential(
        *model[:2], cr.nn.SparseLinear.from_linear(model[2], mask=mask), *model[3 : last + 1]
    )
    back = cr.nn.to_mlp(sparse, mlp)
    assert back.hidden_layer_sizes == (int(keep.sum()), 7)
    assert int((back.coefs_[1] == 0).sum()) == int((~mask).sum())
    tolerance = 1e-4 if dtype == np.float32 else 1e-10
    np.testing.assert_allclose(
        predictions(sparse, mlp, x), expected(back, x), rtol=tolerance, atol=tolerance
    )


def test_training_goes_on_in_scikit_learn():
    mlp, x = fitted()
    model = cr.nn.from_mlp(mlp)
    cr.prune.shrink(model, {0: np.arange(11) < 4})
    back = cr.nn.to_mlp(model, mlp)
    before = copy.deepcopy(back.coefs_)
    back.partial_fit(x, mlp.predict(x))
    assert [w.shape for w in back.coefs_] == [(5, 4), (4, 7), (7, 3)]
    assert not np.array_equal(back.coefs_[0], before[0])


def test_a_single_layer():
    mlp, x = fitted(hidden_layer_sizes=())
    model = cr.nn.from_mlp(mlp)
    assert len(model) == 1
    np.testing.assert_allclose(predictions(model, mlp, x), mlp.predict_proba(x), rtol=1e-10)


def test_what_cannot_be_converted_is_named():
    mlp, _ = fitted()
    model = cr.nn.from_mlp(mlp)
    other = cr.nn.Sequential(cr.nn.Linear(5, 4, rng=0), cr.nn.ReLU(), cr.nn.Linear(4, 3, rng=0))
    several = MLPClassifier((4,), tol=9.0).fit(np.eye(4), np.eye(4, dtype=int)[:, :3])
    for call, error, match in (
        (lambda: cr.nn.from_mlp(3), TypeError, "estimator must be an MLPClassifier"),
        (lambda: cr.nn.from_mlp(MLPClassifier), TypeError, "estimator must be an MLPClassifier"),
        (lambda: cr.nn.from_mlp(MLPClassifier()), ValueError, "estimator must be fitted"),
        (lambda: cr.nn.from_mlp(fitted(activation="tanh")[0]), ValueError, "got 'tanh'"),
        (lambda: cr.nn.from_mlp(several), ValueError, "one label for each row"),
        (lambda: cr.nn.to_mlp(other, mlp), ValueError, "model must have the layers"),
        (lambda: cr.nn.to_mlp(mlp, mlp), TypeError, "model must be a Sequential"),
        (
            lambda: cr.nn.to_mlp(cr.nn.Sequential(*model[:4], cr.nn.GELU()), mlp),
            TypeError,
            "got GELU at 4",
        ),
        (
            lambda: cr.nn.to_mlp(
                cr.nn.Sequential(*model[:4], cr.nn.Linear(7, 2, dtype=np.float64)), mlp
            ),
            ValueError,
            "5 inputs and 3 outputs",
        ),
    ):
        with pytest.raises(error, match=match):
            call()
