"""Fine-tune on a folder of images (FOLDER/CLASS/IMAGE) in plain PyTorch, from official weights or from scratch.

python examples/finetune_torch.py FOLDER --weights vssm1_tiny_0230s_ckpt_epoch_264.pth
"""

import argparse

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

import vssm
from vssm.data.imagefolder import ImageFolder
from vssm.data.preprocess import published_preprocess


def main() -> list[float]:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--model", default="vmamba_tiny")
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-4)
    args = parser.parse_args()

    images = ImageFolder(args.folder, published_preprocess(args.model).transform())
    loader = DataLoader(images, args.batch_size, shuffle=True)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = vssm.create_model(args.model, num_classes=len(images.classes)).to(device)
    if args.weights:
        print(vssm.load_checkpoint(model, args.weights, head="reset"))  # everything except the classifier
    optimizer = torch.optim.AdamW(model.parameters(), args.lr, weight_decay=0.05)
    losses = []
    for epoch in range(args.epochs):
        total = 0.0
        for x, labels in loader:
            loss = F.cross_entropy(model(x.to(device)), labels.to(device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(labels)
        losses.append(total / len(images))
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
