from types import SimpleNamespace

import torch
from torch import nn

from vssm.train.averaging import AverageWeights


def test_formula_step_by_step():
    """The first step copies; early steps move far, later ones by 1 - decay; counters are copied; a batch without a
    step does nothing."""
    model = nn.BatchNorm1d(2)
    averages = AverageWeights(0.3)
    averages._average_model = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    found = averages._average_model.module
    expected = 0.0
    for step, value in enumerate((3.0, 5.0, -1.0, 2.0), start=1):
        with torch.no_grad():
            for tensor in (model.weight, model.bias, model.running_mean):
                tensor.fill_(value)
            model.num_batches_tracked.fill_(step)
        decay = {1: 0.0, 2: 3 / 12, 3: 0.3, 4: 0.3}[step]  # 4 / 13 and 5 / 14 are more than 0.3
        expected = decay * expected + (1 - decay) * value
        for _ in range(2):
            averages.on_train_batch_end(SimpleNamespace(global_step=step), model, None, None, 0)
            for tensor in (found.weight, found.bias, found.running_mean):
                torch.testing.assert_close(tensor.detach(), torch.full((2,), expected))
            assert found.num_batches_tracked == step
    assert averages._average_model.n_averaged == 4
