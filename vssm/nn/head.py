"""The classifier of a sequence of tokens."""

import torch
from torch import Tensor, nn

from vssm.nn.choices import check_choice

__all__ = ["TokenHead", "without_class_token"]


class TokenHead(nn.Module):
    """Pool tokens (B, L, dim), then classify: (B, num_classes).

    Args:
        global_pool: "token", the class token in the middle; "avg", the mean of all others; "" for no pooling.
        class_token: whether there is one.
    """

    def __init__(self, dim: int, num_classes: int, global_pool: str, drop_rate: float, class_token: bool):
        super().__init__()
        self.num_features, self.class_token = dim, class_token
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None, in_features: int | None = None) -> None:
        """A fresh classifier (0 classes: none), another pooling and another width if given."""
        if in_features is not None:
            self.num_features = in_features
        if global_pool is not None:
            check_choice("global_pool", global_pool, ("token", "avg", "") if self.class_token else ("avg", ""))
            self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool == "token":
            x = x[:, x.shape[1] // 2]
        elif self.global_pool == "avg":
            x = (without_class_token(x) if self.class_token else x).mean(1)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


def without_class_token(x: Tensor) -> Tensor:
    """Tokens (B, L + 1, C) without the one in the middle."""
    middle = x.shape[1] // 2
    return torch.cat([x[:, :middle], x[:, middle + 1 :]], dim=1)
