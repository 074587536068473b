"""Write Python: a small transformer learns the standard library's own sources by the character, in minutes on a CPU.

python examples/tiny_gpt.py                   a new run, in a folder under runs/
python examples/tiny_gpt.py --run-dir FOLDER  goes on with the run in FOLDER, or begins one there
torchrun --nproc-per-node 2 examples/tiny_gpt.py --parallel fsdp  on two processes, each with a part of the model
"""

import argparse
import math
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

import trainlab
from trainlab import Batch, FSDPOptions, LRScheduler

CHARACTERS = 128  # ASCII
LENGTH = 128  # characters that the model looks back on
AGGREGATION = 2  # batches that make one optimizer step


def load_windows(limit=400_000):
    """Cut the standard library's sources into overlapping windows, as a tensor (windows, LENGTH + 1)."""
    text = b""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        text += path.read_text(encoding="utf-8").encode("ascii", "ignore")
        if len(text) > limit:
            break
    return torch.tensor(list(text[:limit]), dtype=torch.uint8).unfold(0, LENGTH + 1, LENGTH // 2)


class TinyGpt(nn.Module):
    """Maps characters (batch, length) to scores of the next one (batch, length, CHARACTERS)."""

    def __init__(self, width=128, heads=4, layers=3):
        super().__init__()
        self.character = nn.Embedding(CHARACTERS, width)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.scores = nn.Linear(width, CHARACTERS)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, text):
        length = text.shape[1]
        hidden = self.character(text) + self.position[:length]
        return self.scores(self.layers(hidden, mask=self.mask[:length, :length], is_causal=True))


class ShowSample(trainlab.Callback):
    """Prints what the model writes at each validation, and keeps it in TensorBoard.

    All processes let the model write, for under FSDP none can call it alone; the chief shows what it wrote.
    """

    def __init__(self, model, context):
        self.model, self.context = model, context

    def on_validation_epoch_end(self, outputs):
        text = self.context.to_device(torch.tensor([list(b"def ")]))
        for _ in range(200):
            likely = self.model(text[:, -LENGTH:])[:, -1].softmax(-1)
            text = torch.cat([text, torch.multinomial(likely, 1)], dim=1)
        sample, batch = bytes(text[0].tolist()).decode(), self.context.progress.batches_trained
        if self.context.distributed.is_chief:
            print(f"--- after {batch} batches\n{sample}\n---")
        self.context.get_tensorboard_writer().add_text("sample", f"```\n{sample}\n```", batch)


class TinyGptTrial(trainlab.Trial):
    """Gradients of AGGREGATION batches make a step; the learning rate rises linearly and falls as a cosine."""

    def __init__(self, context):
        windows = load_windows()
        self.training_set, self.test_set = windows[: -len(windows) // 10], windows[-len(windows) // 10 :]
        super().__init__(context)

    def build_model(self):
        return TinyGpt()

    def build_optimizer(self, model):
        return torch.optim.AdamW(model.parameters(), lr=self.context.get_hparam("lr"), weight_decay=0.1)

    def build_lr_scheduler(self, optimizer):
        steps = self.context.get_hparam("batches") // AGGREGATION
        warm_up = max(1, steps // 10)

        def factor(step):
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1, (step - warm_up) / max(1, steps - warm_up))))

        return LRScheduler(LambdaLR(optimizer, factor), LRScheduler.StepMode.STEP_EVERY_OPTIMIZER_STEP)

    def build_training_data_loader(self):
        return trainlab.DataLoader(self.training_set, batch_size=8, shuffle=True)

    def build_validation_data_loader(self):
        return trainlab.DataLoader(self.test_set, batch_size=64)

    def build_callbacks(self):
        return {"sample": ShowSample(self.model, self.context)}

    def loss(self, batch):
        text = batch.long()
        return F.cross_entropy(self.model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    def train_batch(self, batch, epoch_idx, batch_idx):
        loss = self.loss(batch)
        self.context.backward(loss)
        self.context.step_optimizer(self.optimizer, clip_grads=lambda p: nn.utils.clip_grad_norm_(p, 1.0))
        return {"loss": loss}

    def evaluate_batch(self, batch, batch_idx):
        loss = self.loss(batch)
        return {"loss": loss, "bits_per_character": loss / math.log(2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000, help="how many batches to train (default: 2000)")
    parser.add_argument("--quick", dest="batches", action="store_const", const=8, help="the same as --batches 8")
    parser.add_argument("--lr", type=float, default=3e-3, help="the highest learning rate (default: 0.003)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="(default: fp32)")
    parser.add_argument("--parallel", choices=("auto", "ddp", "fsdp"), default="auto", help="(default: auto)")
    parser.add_argument("--run-dir", help="the run's folder; a run that is there goes on (default: a new one in runs/)")
    args = parser.parse_args()

    with trainlab.init(
        hparams={"lr": args.lr, "batches": args.batches},
        aggregation_frequency=AGGREGATION,
        precision=args.precision,
        parallel=args.parallel,
        parallel_options=FSDPOptions(wrap=(nn.TransformerEncoderLayer,)) if args.parallel == "fsdp" else None,
        run_dir=args.run_dir,
    ) as context:
        trainlab.Trainer(TinyGptTrial(context), context).fit(
            max_length=Batch(args.batches),
            validation_period=Batch(500),
            reporting_period=Batch(50),
            metric="loss",
            latest_checkpoint=context.latest_checkpoint,
        )


if __name__ == "__main__":
    main()
