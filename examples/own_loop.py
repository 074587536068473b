"""A training loop of your own with trainlab's parts: kill it whenever you like, it goes on to the same bits.

python examples/own_loop.py                   a new run, in a folder under runs/
python examples/own_loop.py --run-dir FOLDER  goes on with the checkpoints in FOLDER (a path or a URL), or begins there
"""

import argparse
from datetime import datetime

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import trainlab
from trainlab.checkpoint import (
    checkpoint_name,
    latest_checkpoint,
    list_checkpoints,
    remove_checkpoint,
    remove_rubbish,
)
from trainlab.storage import open_store

SEED = 0
PERIOD = 20  # steps between two checkpoints
KEPT = 2  # checkpoints


def load_data():
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return TensorDataset(images[:1500], labels[:1500]), images[1500:], labels[1500:]


def build(training_set):
    """All that training changes: it is saved and restored together."""
    torch.manual_seed(SEED)
    ctx = trainlab.ContextObject()
    ctx.model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    ctx.optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=3e-3)
    ctx.scheduler = torch.optim.lr_scheduler.StepLR(ctx.optimizer, step_size=200, gamma=0.5)
    ctx.loader = trainlab.BetterDataLoader(training_set, shuffle=True, random_seed=SEED, batch_size=50)
    ctx.steps = trainlab.Counter()
    ctx.rng = torch.default_generator  # dropout draws from it
    return ctx


def save(store, ctx):
    """Write a checkpoint, and remove those that are no longer needed once it is durable."""
    name = checkpoint_name(ctx.steps.count, store.folders())  # another one where a damaged one of this step still lies
    trainlab.save_checkpoint(ctx, store.location(name), weights=ctx.model)
    print(f"saved {ctx.steps.count}", flush=True)
    for name in list_checkpoints(store)[:-KEPT]:
        remove_checkpoint(store, name)


def load(store, ctx):
    """Go on from the newest checkpoint that is whole, if there is one."""
    remove_rubbish(store)  # what a process left that was killed while it wrote
    newest = latest_checkpoint(store)
    if newest is not None:
        ctx.load_state_dict(trainlab.load_checkpoint(newest))
        print(f"going on from {newest}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="how often to go through the data (default: 20)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--run-dir", help="where the checkpoints are (default: a new folder in runs/)")
    args = parser.parse_args()

    store = open_store(args.run_dir or f"runs/own_loop/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    training_set, test_images, test_labels = load_data()
    ctx = build(training_set)
    load(store, ctx)
    steps = args.epochs * len(ctx.loader)
    while ctx.steps.count < steps:
        for images, labels in ctx.loader:  # after a resume: the rest of the epoch
            loss = F.cross_entropy(ctx.model(images), labels)
            loss.backward()
            ctx.optimizer.step()
            ctx.optimizer.zero_grad()
            ctx.scheduler.step()
            ctx.steps.step()
            if ctx.steps.count % PERIOD == 0 or ctx.steps.count == steps:
                save(store, ctx)

    ctx.model.eval()
    with torch.no_grad():
        accuracy = (ctx.model(test_images).argmax(1) == test_labels).float().mean()
    print(f"Test accuracy: {accuracy:.1%}, checkpoints in {store.url}")


if __name__ == "__main__":
    main()
