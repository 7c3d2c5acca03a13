"""The pieces of timm's training script with our models: layer decay, schedule, mixup and EMA as timm makes them.

python examples/timm_training.py --model vmamba_nano --steps 20
"""

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import vssm  # noqa: F401 (registers the models with timm)


def main() -> list[float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="vmamba_nano")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()

    model = timm.create_model(args.model, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    scheduler = CosineLRScheduler(optimizer, t_initial=args.steps, warmup_t=2, warmup_lr_init=1e-6)
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    ema = ModelEmaV3(model, decay=0.99)
    criterion = SoftTargetCrossEntropy()
    images = torch.randn(args.batch_size, *model.pretrained_cfg["input_size"])  # your loader's batch
    labels = torch.arange(args.batch_size) % 10
    losses = []
    for step in range(args.steps):
        mixed, targets = mixup(images.clone(), labels)
        loss = criterion(model(mixed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(step + 1)
        ema.update(model, step)
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, learning rate {optimizer.param_groups[-1]['lr']:.2e}")
    return losses


if __name__ == "__main__":
    main()
