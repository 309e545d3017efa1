"""Train a few steps in float64, alone or as one of two processes under torchrun, which save what came out.

SyncBatchNorm of torch runs on GPUs only, so on CPUs a norm of the same definition stands in its place here.
"""

import sys

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

import mlfm_zoo
from helpers.networks import SMALL

assert mlfm_zoo.models


class SyncNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        n = x.numel() / x.shape[1] * dist.get_world_size()
        mean = all_reduce(x.sum((0, 2, 3))) / n
        var = all_reduce((x - mean[:, None, None]).square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        x = (x - mean[:, None, None]) / (var + self.eps).sqrt()[:, None, None]
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def train(name, distributed=False):
    """The state dict of a network after three steps, each on a batch that all processes share."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, drop_path_rate=0, **SMALL[name]).double()
    images, targets = torch.randn(3, 16, 3, 64, 64).double(), torch.randint(10, (3, 16))
    trained = model
    if distributed:
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SyncNorm
        trained = nn.parallel.DistributedDataParallel(model)
        images, targets = (t.chunk(2, dim=1)[dist.get_rank()] for t in (images, targets))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for step in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(trained(images[step]), targets[step]).backward()
        optimizer.step()
    return model.state_dict()


def main(file, *names):
    dist.init_process_group('gloo')
    states = {name: train(name, distributed=True) for name in names}
    if dist.get_rank() == 0:
        torch.save(states, file)
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
