"""What ranks would each import on the way, imported once: they are forked from a process that has loaded this."""

import gc

import torch
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.utils.tensorboard
from torch import nn
from torch.utils.tensorboard.writer import SummaryWriter

import trainlab

torch.set_num_threads(1)
assert trainlab.Trainer and trainlab.init and SummaryWriter
parameter = nn.Parameter(torch.ones(1))
parameter.grad = torch.ones(1)
torch.optim.AdamW([parameter]).step()
gc.collect()
gc.freeze()  # a forked process that looks at everything would copy everything
