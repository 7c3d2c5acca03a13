"""The loss by hand."""

import pytest
import torch
from torch import nn

from vssm.tasks.segmentation import upernet
from vssm.tasks.segmentation.learner import Segmentation


class Fixed(nn.Module):
    """Gives these scores, and in training those of an auxiliary head."""

    def __init__(self, scores, aux=None):
        super().__init__()
        self.scores, self.aux = nn.Parameter(scores), aux

    def forward(self, images):
        return (self.scores, self.aux) if self.aux is not None and self.training else self.scores


def by_hand(scores, labels, smoothing=0.0, over_valid=False):
    """Scores (B, K, H, W) and labels of one size: the mean of -log p over all pixels, the ignored ones counting 0."""
    total, count, valid = 0.0, 0, 0
    for b in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                count += 1
                label = int(labels[b, y, x])
                if label == 255:
                    continue
                valid += 1
                logs = scores[b, :, y, x].double().log_softmax(0)
                total -= float((1 - smoothing) * logs[label] + smoothing * logs.mean())
    return total / (valid if over_valid else count)


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :2] = 255
    return scores, labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("over_valid", [False, True])
def test_the_mean_is_over_all_pixels_or_over_the_valid(case, smoothing, over_valid):
    scores, labels = case
    learner = Segmentation(Fixed(scores), smoothing, over_valid=over_valid)
    loss, found = learner.training_step(torch.zeros(2, 3, 8, 8), labels)
    assert loss.item() == pytest.approx(by_hand(scores, labels, smoothing, over_valid), rel=1e-5)
    assert torch.equal(found, scores) and not found.requires_grad


def test_the_auxiliary_head_counts_for_two_fifths(case):
    scores, labels = case
    aux = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    loss, _ = Segmentation(Fixed(scores, aux)).training_step(torch.zeros(2, 3, 8, 8), labels)
    assert loss.item() == pytest.approx(by_hand(scores, labels) + 0.4 * by_hand(aux, labels), rel=1e-5)
    loss, _ = Segmentation(Fixed(scores, aux), aux_weight=1.5).training_step(torch.zeros(2, 3, 8, 8), labels)
    assert loss.item() == pytest.approx(by_hand(scores, labels) + 1.5 * by_hand(aux, labels), rel=1e-5)


def test_scores_are_resized_to_the_labels():
    """Bilinear, corners not aligned: two columns become 0, 1/4, 3/4, 1."""
    scores = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]])
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    wide = torch.tensor([[[[0.0, 0.25, 0.75, 1.0]], [[0.0] * 4]]])
    loss = Segmentation(Fixed(scores)).loss(scores, labels)
    assert loss.item() == pytest.approx(by_hand(wide, labels), rel=1e-5)


@pytest.mark.parametrize("over_valid", [False, True])
def test_nothing_valid_is_no_loss_and_no_gradient(over_valid):
    model = Fixed(torch.randn(2, 3, 2, 2))
    learner = Segmentation(model, 0.1, over_valid=over_valid)
    labels = torch.full((2, 4, 4), 255)
    loss, scores = learner.training_step(torch.zeros(2, 3, 8, 8), labels)
    loss.backward()
    assert loss.item() == 0 and (model.scores.grad == 0).all()
    assert float(learner.running(scores, labels)["accuracy"]) == 0


def test_one_image_alone_is_refused():
    with pytest.raises(ValueError, match=r"one image alone cannot train.*data\.batch_size to 2 or more"):
        Segmentation(Fixed(torch.zeros(1, 2, 2, 2))).training_step(
            torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
        )


def test_running_accuracy():
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 1, 0] = 1  # the upper half is class 1
    labels = torch.tensor([[[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]])
    learner = Segmentation(Fixed(scores))
    assert float(learner.running(scores, labels)["accuracy"]) == 0.75
    labels[:, 2:, 2:] = 255
    assert float(learner.running(scores, labels)["accuracy"]) == 1


def test_a_network_learns():
    torch.manual_seed(0)
    learner = Segmentation(upernet("vmamba_nano", 2, channels=8, aux_channels=4)).train()
    images = torch.zeros(2, 3, 32, 32)
    images[:, :, :, 16:] = 2
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 1
    optimizer = torch.optim.AdamW(learner.parameters(), 2e-2)
    losses = []
    for _ in range(12):
        loss, _ = learner.training_step(images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(1.4 * 0.693, rel=0.1) and losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None for parameter in learner.parameters())
