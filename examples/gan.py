"""Draw digits: two models, each with an optimizer of its own that takes its own number of steps.

python examples/gan.py                   a new run, in a folder under runs/
python examples/gan.py --run-dir FOLDER  goes on with the run in FOLDER, or begins one there
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import trainlab
from trainlab import Epoch

NOISE = 32
DISCRIMINATOR_STEPS = 2


class GanTrial(trainlab.Trial):
    """A generator learns to draw what the discriminator cannot tell from real digits."""

    def __init__(self, context):
        self.images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
        super().__init__(context)

    def build_model(self):
        return {
            "generator": nn.Sequential(nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh()),
            "discriminator": nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(128, 1)),
        }

    def build_optimizer(self, models):
        return {
            name: torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999)) for name, model in models.items()
        }

    def build_training_data_loader(self):
        return trainlab.DataLoader(self.images[:1500], batch_size=64, shuffle=True)

    def build_validation_data_loader(self):
        return trainlab.DataLoader(self.images[1500:], batch_size=256)

    def train_batch(self, batch, epoch_idx, batch_idx):
        for _ in range(DISCRIMINATOR_STEPS):
            d_loss = self.judge(batch, 1) + self.judge(self.draw(batch).detach(), 0)
            self.context.backward(d_loss)
            self.context.step_optimizer(self.optimizers["discriminator"])
        g_loss = self.judge(self.draw(batch), 1)
        self.context.backward(g_loss)
        self.context.step_optimizer(self.optimizers["generator"])
        # The generator's loss has left gradients in the discriminator too.
        self.optimizers["discriminator"].zero_grad()
        return {"discriminator_loss": d_loss, "generator_loss": g_loss}

    def evaluate_batch(self, batch, batch_idx):
        """Measure how far each real digit is from the nearest drawn one."""
        return {"distance": torch.cdist(batch, self.draw(batch)).min(dim=1).values.mean()}

    def draw(self, like):
        return self.models["generator"](like.new_empty(len(like), NOISE).normal_())

    def judge(self, images, truth):
        scores = self.models["discriminator"](images)
        return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, truth))


def as_text(image):
    rows = ((image + 1) * 2).round().int().reshape(8, 8).tolist()
    return "\n".join("".join(" .:+#"[value] * 2 for value in row) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="how often to go through the data (default: 100)")
    parser.add_argument("--quick", dest="epochs", action="store_const", const=2, help="the same as --epochs 2")
    parser.add_argument("--run-dir", help="the run's folder; a run that is there goes on (default: a new one in runs/)")
    args = parser.parse_args()

    with trainlab.init(run_dir=args.run_dir) as context:
        trial = GanTrial(context)
        result = trainlab.Trainer(trial, context).fit(
            max_length=Epoch(args.epochs),
            validation_period=Epoch(10),
            checkpoint_policy="none",
            checkpoint_period=Epoch(50),
            latest_checkpoint=context.latest_checkpoint,
        )
    if context.distributed.is_chief:
        print(f"Steps: {result.progress.optimizer_steps}, distance: {result.metrics['distance']:.2f}. A drawn digit:")
        print(as_text(trial.draw(trial.images[:1]).detach()))


if __name__ == "__main__":
    main()
