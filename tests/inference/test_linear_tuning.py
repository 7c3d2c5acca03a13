"""The last layer trained anew on cached features: the optimum, whatever the order of the images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import vssm
from vssm.inference.input_size import labelled
from vssm.inference.linear_tuning import DECAY, Features, cached_features, tune_linear
from vssm.inference.predictor import Predictor
from vssm.settings import DataSettings

DATA = Path(__file__).parents[1] / "data" / "run_of_0.1"


def clouds(images=300):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % 3
    centres = torch.randn(3, 5, generator=generator)
    return Features(7 + 3 * (centres[labels] + torch.randn(images, 5, generator=generator)), labels)


def test_it_is_the_optimum_of_logistic_regression():
    found = clouds()
    layer = tune_linear(found, 3)
    values = found.values.numpy().astype(np.float64)
    standard = (values - values.mean(0)) / values.std(0)
    other = LogisticRegression(C=1 / (DECAY * len(values)), max_iter=5000, tol=1e-10).fit(standard, found.labels)
    with torch.inference_mode():
        probabilities = layer(found.values).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, other.predict_proba(standard), atol=2e-3)


def test_neither_order_nor_scale_of_the_features_matters():
    found = clouds()
    order = torch.randperm(len(found.labels))
    one = tune_linear(found, 3)
    other = tune_linear(Features(1000 * found.values[order], found.labels[order]), 3)
    torch.testing.assert_close(one(found.values), other(1000 * found.values), atol=5e-3, rtol=5e-3)
    assert torch.equal(one.weight, tune_linear(found, 3).weight)


def test_features_are_what_the_last_layer_gets():
    predictor = vssm.load(DATA / "run")
    splits = labelled(predictor, DataSettings("imagefolder", str(DATA / "images")))
    found = cached_features(predictor, splits.val, 2)
    images = torch.stack([predictor.preprocess(path) for path, _ in splits.val.samples])
    with torch.inference_mode():
        expected = predictor.model.forward_head(predictor.model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(found.values, expected)
    assert found.labels.tolist() == splits.val.labels
    assert not predictor.model.get_classifier()._forward_pre_hooks


def test_a_classifier_that_is_not_one_layer_is_refused():
    predictor = vssm.load(DATA / "run")
    model = predictor.model
    model.head.fc = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    splits = labelled(predictor, DataSettings("imagefolder", str(DATA / "images")))
    with pytest.raises(ValueError, match=r"one linear layer; vmamba_nano has Sequential"):
        cached_features(Predictor("vmamba_nano", model, predictor.preprocess, predictor.classes), splits.val, 2)
