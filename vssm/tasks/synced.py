"""BatchNorm of heads, whose batches are small: over all devices of a training."""

from torch import Tensor, nn


class SyncedBatchNorm(nn.SyncBatchNorm):
    """BatchNorm over all processes of a distributed training on GPUs, and over this process's batch anywhere else.

    torch's own refuses to be trained by several processes on CPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return super().forward(input)
        return super(nn.SyncBatchNorm, self).forward(input)
