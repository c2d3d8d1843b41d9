"""Several processes, one per GPU or CPU: started by torchrun, joined by gloo or NCCL; a world of one needs neither."""

import logging
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from endomust_core.learning.config import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """Which process this is, of how many, and its device."""

    rank: int
    size: int
    device: torch.device

    def any(self, flag: bool) -> bool:
        """True in every process where it is true in one."""
        if self.size == 1:
            return flag
        count = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(count)
        return bool(count > 0)

    def all(self, flag: bool) -> bool:
        """True where it is true in every process."""
        return not self.any(not flag)

    def mean(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each value averaged over the processes, so that curves show the whole batch."""
        if self.size == 1:
            return values
        stacked = torch.stack([value.float() for value in values.values()])
        dist.all_reduce(stacked)
        return dict(zip(values, (stacked / self.size).unbind(0), strict=True))

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def first(self):
        """Rank 0 runs the body before all others; of several machines, the first process of each."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if self.size > 1 and local != 0:
            dist.barrier()
        yield
        if self.size > 1 and local == 0:
            dist.barrier()

    def reduce(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes."""
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)


@contextmanager
def processes(device: str = "auto"):
    """Join the other processes where torchrun started some → World; leaves them at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    world = World(rank, size, chosen_device(device))
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    if size == 1:
        yield world
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=4))  # filling the cache of a data set takes its time
    if rank != 0:
        logging.getLogger("endomust_core").setLevel(logging.WARNING)
    try:
        yield world
    finally:
        dist.destroy_process_group()


def chosen_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:N → device; ConfigError where it does not exist."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"train.device is {name!r}; write auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("train.device is cuda, but PyTorch finds no GPU; check the driver, or write cpu")
        device = torch.device("cuda", local if device.index is None else device.index)
    return device


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context, values):
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context, gradient):
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on CPU and GPU alike: as if one process had the whole batch."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()
            count = x.numel() / x.shape[1] * dist.get_world_size()
            sums = torch.stack((x.sum((0, 2, 3)), x.square().sum((0, 2, 3))))
            mean, square = (SumOverProcesses.apply(sums) / count).unbind(0)
            variance = (square - mean.square()).clamp(min=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
                self.num_batches_tracked += 1
            scale = self.weight * torch.rsqrt(variance + self.eps)
            return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


def synchronise_batch_norm(networks: dict[str, nn.Module]) -> None:
    """Replace every batch norm in place; parameters and buffers stay the same tensors."""
    for network in networks.values():
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SynchronisedBatchNorm
