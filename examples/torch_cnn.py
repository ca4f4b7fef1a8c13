"""Fine-tune a convolutional network of PyTorch with 8-bit optimizer state, and prune it."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import compressrs as cr


def digits():
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(x.reshape(-1, 1, 8, 8) / 16, dtype=torch.float32)
    return train_test_split(images, torch.tensor(y), random_state=0)


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )


def train(model, optimizer, x, y, epochs):
    """Train for some epochs; PyTorch's schedulers work on the optimizer as on any other."""
    batches = -(-len(x) // 64)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=epochs * batches
    )
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            cr.torch.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step(max_grad_norm=1.0)
            scheduler.step()


@torch.no_grad()
def accuracy(model, x, y):
    return float((model.eval()(x).argmax(1) == y).float().mean())


def main():
    torch.manual_seed(0)
    x_train, x_test, y_train, y_test = digits()
    model = network()
    optimizer = cr.torch.optim.AdamW(model.parameters(), lr=5e-3, state_dtype="int8")
    train(model, optimizer, x_train, y_train, epochs=3)
    dense = accuracy(model, x_test, y_test)
    assert optimizer.state[model[7].weight]["exp_avg"].dtype == torch.int8

    # Weights: 90 % of the large matrix, held at 0 by the optimizer, are stored sparse at the end.
    cr.torch.prune(model, 0.9, ["7.weight"], optimizer=optimizer)
    train(model, optimizer, x_train, y_train, epochs=2)
    # Filters: a quarter of the second convolution, with all that depends on them.
    norms = model[3].weight.detach().flatten(1).norm(dim=1)
    cr.torch.shrink(model, {3: norms > norms.quantile(0.25)}, optimizer)
    train(model, optimizer, x_train, y_train, epochs=2)
    pruned = accuracy(model, x_test, y_test)

    model[7] = cr.torch.SparseLinear.from_linear(model[7])
    sparse = accuracy(model, x_test, y_test)
    print(f"dense {dense:.3f}, pruned {pruned:.3f}, sparse {sparse:.3f}; {model[3]}, {model[7]}")
    assert model[3].out_channels == 24
    assert model[7].matrix.nnz < 0.15 * 384 * 64
    assert pruned > dense - 0.03 and abs(sparse - pruned) < 0.01
    return dense, pruned, sparse


if __name__ == "__main__":
    main()
