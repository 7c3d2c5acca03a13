"""Vim beside the goldens: tokens and maps, the position embedding on other grids, state fusion, initial values."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

import vssm
from vssm.models.vim import PatchEmbed
from vssm.nn import StateFusion
from vssm.weights.position import resize_positions


def _nano(**options):
    torch.manual_seed(0)
    return vssm.create_model("vim_nano", num_classes=10, **options).eval()


def test_tokens_pooling_and_heads():
    model, x = _nano(), torch.randn(2, 3, 32, 32)
    tokens = model.forward_features(x)
    assert tokens.shape == (2, 65, 96)
    torch.testing.assert_close(model(x), model.head.fc(tokens[:, 32]))
    model.reset_classifier(4, "avg")
    torch.testing.assert_close(model(x), model.head.fc(torch.cat([tokens[:, :32], tokens[:, 33:]], 1).mean(1)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), tokens)
    with pytest.raises(ValueError, match="unknown global_pool 'max': choose one of token, avg"):
        model.reset_classifier(3, "max")
    with pytest.raises(ValueError, match="unknown global_pool 'token': choose one of avg"):
        vssm.create_model("vim_nano", class_token=False, global_pool="token")


def test_maps_are_the_tokens_of_the_blocks():
    model, x = _nano(), torch.randn(2, 3, 32, 40)
    tokens, maps = model.forward_intermediates(x)
    torch.testing.assert_close(tokens, model.forward_features(x))
    assert len(maps) == 8 and all(m.shape == (2, 96, 8, 10) for m in maps)
    normed = model.forward_intermediates(x, [7], norm=True, output_fmt="NLC", intermediates_only=True)[0]
    torch.testing.assert_close(normed, torch.cat([tokens[:, :40], tokens[:, 41:]], 1))
    early = model.forward_intermediates(x, [2], stop_early=True, output_fmt="NHWC", intermediates_only=True)[0]
    torch.testing.assert_close(early.permute(0, 3, 1, 2), maps[2])
    backbone = timm.create_model("vim_nano", features_only=True).eval()
    assert backbone.feature_info.channels() == [96] * 4 and backbone.feature_info.reduction() == [4] * 4
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("head", "norm"))}
    backbone.load_state_dict({f"model.{k}": v for k, v in state.items()})
    torch.testing.assert_close(backbone(x), [maps[i] for i in (1, 3, 5, 7)])


def test_pruned_model_gives_the_same_maps():
    model, x = _nano(), torch.randn(1, 3, 32, 32)
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 2]) == [0, 2] and len(model.blocks) == 3
    torch.testing.assert_close(model.forward_intermediates(x, [0, 2], intermediates_only=True), [maps[0], maps[2]])


def test_a_batch_equals_its_images():
    """The blocks run a few samples at a time where nobody can tell."""
    model, x = vssm.create_model("vim_tiny", depth=2).eval(), torch.randn(9, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(image) for image in x.split(1)]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(16, 16), (16, 8), (4, 3)])
def test_images_that_do_not_fit_are_padded(size, stride):
    embed = PatchEmbed(3, 5, size, stride)
    for height, width in ((size, size), (size + 1, 2 * size + 3), (50, 61)):
        rows, columns = embed.grid(height, width)
        assert (rows, columns) == (math.ceil((height - size) / stride) + 1, math.ceil((width - size) / stride) + 1)
        x = torch.randn(1, 3, height, width)
        whole = F.pad(x, (0, (columns - 1) * stride + size - width, 0, (rows - 1) * stride + size - height))
        torch.testing.assert_close(embed(x), embed.proj(whole).permute(0, 2, 3, 1))


def test_official_stride_8_grid():
    with torch.device("meta"):
        model = vssm.create_model("vim_tiny", patch_stride=8)
    assert model.grid == (27, 27) and model.pos_embed.shape == (1, 27 * 27 + 1, 192)


@pytest.mark.parametrize("token", [0, 1])
def test_resized_positions(token):
    """Places are resized as a map; the class token keeps its values and the middle."""
    places = torch.randn(48)
    positions = places if not token else torch.cat([places[:24], torch.tensor([-7.0]), places[24:]])
    resized = resize_positions(positions.view(1, -1, 1), 6, 8, 12, 16).flatten()
    assert len(resized) == 12 * 16 + token
    if token:
        assert resized[96] == -7
        resized = torch.cat([resized[:96], resized[97:]])
    want = F.interpolate(places.view(1, 1, 6, 8), size=(12, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized.view(1, 1, 12, 16), want)
    torch.testing.assert_close(resize_positions(positions.view(1, -1, 1), 6, 8, 6, 8).flatten(), positions)


def test_loading_for_another_size_is_reported(tmp_path):
    torch.save(_nano().state_dict(), tmp_path / "small.pth")
    larger = _nano(img_size=(40, 48))
    report = vssm.load_checkpoint(larger, tmp_path / "small.pth")
    assert "position embedding resized from 8x8 to 10x12" in str(report)
    assert torch.equal(larger.pos_embed[:, 60], _nano().pos_embed[:, 32])
    with pytest.warns(UserWarning, match="resized from 8x8 to 10x12"):
        timm.create_model(
            "vim_nano",
            img_size=(40, 48),
            num_classes=10,
            checkpoint_path=None,
            pretrained=True,
            pretrained_cfg_overlay={"file": str(tmp_path / "small.pth"), "num_classes": 10},
        )


def test_state_fusion_acts_on_the_image_grid():
    """With only the centre tap alive, fusion is the plain scan; with all, a state reaches the row above."""
    model = _nano(class_token=False, d_state=1, state_fn=lambda dim, k, n: StateFusion(dim, k, n, (1,)))
    plain = _nano(class_token=False, d_state=1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "state_fn" not in k})
    x = torch.randn(1, 3, 32, 32)
    assert (model(x) - plain(x)).abs().max() > 5e-5
    for name, parameter in model.named_parameters():
        if "kernels" in name:
            parameter.data.zero_()[..., 1, 1] = 1
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-5)
    branches = model.blocks[0].mixer
    assert branches.forward_branch.state_fn is not branches.backward_branch.state_fn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_fn": StateFusion}, "state_fn needs class_token=False"),
        ({"patch_stride": 5}, "patch_stride between 1 and patch_size"),
        ({"depth": 0}, "must be at least 1"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\)"),
        ({"d_state": 0}, "d_state, .* must be at least 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        vssm.create_model("vim_nano", **options)


def test_initial_values():
    torch.manual_seed(0)
    model = vssm.create_model("vim_tiny", depth=4)
    mixer = model.blocks[3].mixer
    for branch in (mixer.forward_branch, mixer.backward_branch):
        torch.testing.assert_close(branch.A_log, torch.arange(1.0, 17).log().expand(384, 16))
        assert (branch.D == 1).all()
    dt = F.softplus(mixer.forward_branch.dt_proj_bias)
    assert 1e-3 <= dt.min() < 2e-3 and 0.05 < dt.max() <= 0.1001
    assert (mixer.backward_branch.dt_proj_bias == 0).all()
    bound = 1 / math.sqrt(384) / 2  # Kaiming uniform with a = sqrt(5), over sqrt(depth)
    assert 0.95 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert 0.015 < model.pos_embed.std() < 0.025 and 0.015 < model.cls_token.std() < 0.025
    assert (model.patch_embed.proj.bias == 0).all() and (model.head.fc.bias == 0).all()
    skipped = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "blocks.3.mixer.backward_branch.dt_proj_bias"} <= skipped and len(skipped) == 10
