"""A training loop of your own with trainlab's checkpoints: kill it whenever you like, it goes on to the same bits.

python examples/own_loop.py                   a new run, in a folder under runs/
python examples/own_loop.py --run-dir FOLDER  goes on with the checkpoints in FOLDER (a path or a URL), or begins there
"""

import argparse
from datetime import datetime

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

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
BATCH_SIZE = 50
PERIOD = 20  # steps between two checkpoints
KEPT = 2  # checkpoints


def load_data():
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    return images[:1500], labels[:1500], images[1500:], labels[1500:]


def order_of(epoch, records):
    """The order of an epoch, drawn from the seed and the epoch alone: so it needs no place in a checkpoint."""
    return torch.randperm(records, generator=torch.Generator().manual_seed(SEED * 100_000 + epoch))


def save(store, step, model, optimizer, scheduler):
    """Write a checkpoint, and remove those that are no longer needed once it is durable."""
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),  # dropout draws from it
    }
    name = checkpoint_name(step, store.folders())  # another one where a damaged checkpoint of this step still lies
    trainlab.save_checkpoint(state, store.location(name), weights=model)
    print(f"saved {step}", flush=True)
    for name in list_checkpoints(store)[:-KEPT]:
        remove_checkpoint(store, name)


def load(store, model, optimizer, scheduler):
    """Go on from the newest checkpoint that is whole; return the number of steps that it holds."""
    remove_rubbish(store)  # what a process left that was killed while it wrote
    newest = latest_checkpoint(store)
    if newest is None:
        return 0
    trainlab.load_weights(model, newest)
    state = trainlab.load_checkpoint(newest)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"])
    print(f"going on from {newest}", flush=True)
    return state["step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20, help="how often to go through the data (default: 20)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--run-dir", help="where the checkpoints are (default: a new folder in runs/)")
    args = parser.parse_args()

    store = open_store(args.run_dir or f"runs/own_loop/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    torch.manual_seed(SEED)
    images, labels, test_images, test_labels = load_data()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=200, gamma=0.5)

    steps_per_epoch = len(images) // BATCH_SIZE
    done = load(store, model, optimizer, scheduler)
    for step in range(done, args.epochs * steps_per_epoch):
        epoch, batch = divmod(step, steps_per_epoch)
        if batch == 0 or step == done:
            order = order_of(epoch, len(images))
        chosen = order[batch * BATCH_SIZE :][:BATCH_SIZE]
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if (step + 1) % PERIOD == 0 or step + 1 == args.epochs * steps_per_epoch:
            save(store, step + 1, model, optimizer, scheduler)

    model.eval()
    with torch.no_grad():
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean()
    print(f"Test accuracy: {accuracy:.1%}, checkpoints in {store.url}")


if __name__ == "__main__":
    main()
