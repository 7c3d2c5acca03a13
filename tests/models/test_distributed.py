"""Two processes train what a backbone for dense prediction has: no parameter is left without a gradient."""

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

import vssm  # noqa: F401  (registers the models)


def _train(rank, folder, name, options):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = timm.create_model(name, **options)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):  # the second step finds what the first left without a gradient
        optimizer.zero_grad()
        found = parallel(torch.randn(2, 3, 16, 16))
        maps = found if isinstance(found, list) else [found]
        sum(y.square().mean() for y in maps).backward()
        optimizer.step()
    torch.save({n: p.detach() for n, p in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.barrier()  # gloo can hang in a process that leaves after the other
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="this torch has no distributed package")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vmamba_nano", {"features_only": True, "out_norms": True}),
        pytest.param("spatial_mamba_nano", {"features_only": True, "out_norms": True}, marks=pytest.mark.full),
        pytest.param("vim_nano", {"num_classes": 3, "depth": 2}, marks=pytest.mark.full),
        pytest.param("vmamba_nano", {"num_classes": 3}, marks=pytest.mark.full),
    ],
)
def test_every_parameter_is_used_in_parallel_training(name, options, tmp_path):
    torch.multiprocessing.spawn(_train, (str(tmp_path), name, options), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert any("out_norms" in n for n in first) == options.get("out_norms", False)
    for n in first:  # one gradient, averaged, moves both alike
        assert torch.equal(first[n], second[n]), n
