"""The classifier of a sequence of tokens: which tokens it pools, and what a reset leaves."""

import pytest
import torch
from torch import nn

from vssm.nn.head import TokenHead, without_class_token


@pytest.mark.parametrize("length", [5, 6])
def test_the_class_token_is_the_middle_one(length):
    head, x = TokenHead(3, 2, "token", 0.0, class_token=True).eval(), torch.randn(2, length, 3)
    token = x[:, length // 2]
    assert torch.equal(head(x, pre_logits=True), token)
    torch.testing.assert_close(head(x), token @ head.fc.weight.t() + head.fc.bias)
    rest = torch.stack([x[:, i] for i in range(length) if i != length // 2], 1)
    assert torch.equal(without_class_token(x), rest)
    head.reset(2, "avg")
    torch.testing.assert_close(head(x, pre_logits=True), rest.mean(1))


def test_without_a_class_token_all_tokens_count():
    head, x = TokenHead(3, 0, "avg", 0.0, class_token=False), torch.randn(2, 5, 3)
    assert isinstance(head.fc, nn.Identity)
    torch.testing.assert_close(head(x), x.mean(1))
    head.reset(4, "", in_features=3)
    assert head(x).shape == (2, 5, 4)
    head.reset(4, "avg", in_features=7)
    assert head.fc.in_features == head.num_features == 7


def test_dropout_acts_in_training_only():
    head, x = TokenHead(64, 0, "avg", 0.5, class_token=False), torch.ones(1, 3, 64)
    dropped = head(x)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(head.eval()(x), torch.ones(1, 64))


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="unknown global_pool 'max': choose one of token, avg"):
        TokenHead(3, 2, "max", 0.0, class_token=True)
    with pytest.raises(ValueError, match="unknown global_pool 'token': choose one of avg"):
        TokenHead(3, 2, "token", 0.0, class_token=False)
