"""The differentiable losses are those of arrays, with their gradients."""

import inspect

import numpy as np
import pytest

import compressrs as cr

torch = pytest.importorskip("torch")
ctorch = pytest.importorskip("compressrs.torch")

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 5, 7)
CASES = {
    "kd_loss": (cr.distill.kd_loss, (7, 5), {"temperature": 3.0, "labels": LABELS, "alpha": 0.4}),
    "dkd_loss": (cr.distill.dkd_loss, (7, 5), {"labels": LABELS}),
    "dist_loss": (cr.distill.dist_loss, (7, 5), {"temperature": 2.0}),
    "hint_loss": (cr.distill.hint_loss, (7, 3, 4), {}),
    "attention_loss": (cr.distill.attention_loss, (7, 3, 4, 4), {}),
    "rkd_distance_loss": (cr.distill.rkd_distance_loss, (7, 5), {}),
    "rkd_angle_loss": (cr.distill.rkd_angle_loss, (7, 5), {}),
    "mse_loss": (cr.nn.mse_loss, (7, 5), {}),
}


def inputs(shape, dtype):
    return [torch.from_numpy(RNG.standard_normal(shape)).to(dtype) for _ in range(2)]


def tensors(options):
    return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(name, dtype):
    function, shape, options = CASES[name]
    student, teacher = inputs(shape, dtype)
    loss, gradient = function(student.numpy(), teacher.numpy(), **options)
    leaf = student.clone().requires_grad_()
    result = getattr(ctorch, name)(leaf, teacher, **tensors(options))
    assert result.dtype == dtype
    assert result.shape == ()
    np.testing.assert_array_equal(result.detach().numpy(), np.array(loss, gradient.dtype))
    result.backward(retain_graph=True)
    np.testing.assert_array_equal(leaf.grad.numpy(), gradient)
    # Gradients add up, and the one that is kept for another backward pass is not changed.
    (3 * result).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), 4 * gradient, rtol=1e-6)
    with torch.no_grad():
        assert not getattr(ctorch, name)(leaf, teacher, **tensors(options)).requires_grad


@pytest.mark.parametrize("name", CASES)
def test_gradients_pass_gradcheck(name):
    _, shape, options = CASES[name]
    student, teacher = inputs(shape, torch.float64)
    loss = getattr(ctorch, name)
    assert torch.autograd.gradcheck(
        lambda z: loss(2 * z, teacher, **tensors(options)), student.requires_grad_()
    )


def test_all_losses_are_tested_and_have_the_signature_of_arrays():
    names = {name for name in ctorch.__all__ if name.endswith(("_loss", "cross_entropy"))}
    assert names == {*CASES, "cross_entropy"}
    for name in CASES:
        theirs = inspect.signature(CASES[name][0]).parameters
        ours = inspect.signature(getattr(ctorch, name)).parameters
        assert list(ours) == [key for key in theirs if key != "out"]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_is_torch_s(reduction):
    logits, _ = inputs((7, 5), torch.float64)
    labels = torch.from_numpy(LABELS.copy())
    labels[2] = -100
    weight = torch.rand(5, dtype=torch.float64)
    upstream = torch.rand(7, dtype=torch.float64) if reduction == "none" else None
    grads = []
    for function, options in (
        (ctorch.cross_entropy, {"class_weight": weight}),
        (torch.nn.functional.cross_entropy, {"weight": weight}),
    ):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, labels, label_smoothing=0.1, reduction=reduction, **options)
        loss.backward(upstream)
        grads.append((loss.detach(), leaf.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_kd_loss_of_rows_and_sequences():
    student, teacher = inputs((2, 3, 5), torch.float64)
    leaf = student.requires_grad_()
    loss = ctorch.kd_loss(leaf, teacher, 2.0, reduction="none")
    assert loss.shape == (2, 3)
    upstream = torch.rand(2, 3, dtype=torch.float64)
    loss.backward(upstream)
    p, q = (torch.softmax(z / 2, -1) for z in (teacher, leaf))
    expected = upstream[..., None] * 2 * (q - p)
    torch.testing.assert_close(leaf.grad, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_top_k(dtype):
    student, teacher = inputs((4, 9), dtype)
    top = cr.distill.top_k(teacher, 3, temperature=2.0)
    for target in (teacher, top, [teacher, teacher]):
        leaf = student.clone().requires_grad_()
        loss = ctorch.kd_loss(leaf, target, 2.0)
        assert loss.dtype == torch.float32
        loss.backward()
        assert leaf.grad.dtype == dtype
        assert leaf.grad.any()


def test_views_and_channels_last():
    student, teacher = inputs((4, 3, 5, 5), torch.float32)
    loss = ctorch.attention_loss(student, teacher)
    leaf = student.to(memory_format=torch.channels_last).requires_grad_()
    same = ctorch.attention_loss(leaf, teacher.to(memory_format=torch.channels_last))
    torch.testing.assert_close(same.detach(), loss)
    same.backward()
    assert leaf.grad.shape == leaf.shape


def test_wrong_tensors_are_named():
    z = torch.zeros(2, 3)
    leaf = z.clone().requires_grad_()
    with pytest.raises(ValueError, match=r"teacher must not require gradients.*detach"):
        ctorch.kd_loss(leaf, leaf * 2)
    with pytest.raises(ValueError, match=r"teacher\[1\] must not require gradients"):
        ctorch.kd_loss(leaf, [z, leaf])
    with pytest.raises(ValueError, match="student must have memory"):
        ctorch.kd_loss(torch.zeros(2, 3, device="meta"), z)
    with pytest.raises(ValueError, match="teacher must have memory"):
        ctorch.kd_loss(leaf, torch.zeros(2, 3, device="meta"))
    with pytest.raises(TypeError, match=r"student must be a torch.Tensor"):
        ctorch.kd_loss(np.zeros((2, 3)), z)
    with pytest.raises(TypeError, match="dtype"):
        ctorch.kd_loss(leaf, z.double())
    with pytest.raises(TypeError, match="out"):
        ctorch.kd_loss(leaf, z, out=z)
