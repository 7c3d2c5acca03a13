"""Grad-CAM of two other packages at our layers, compared with Grad-CAM by hand."""

import pytest
import timm
import torch
from captum.attr import LayerGradCam
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch.nn.functional import interpolate

import vssm
from tests.analysis.test_matrices import shaken
from tests.goldens import image
from vssm.analysis import cam_target

SMALL = {"dims": (8, 16), "depths": (1, 2), "num_classes": 3, "drop_path_rate": 0.0}
VIM = {"dim": 16, "depth": 2, "num_classes": 3}
MODELS = {
    "vmamba": ("vmamba_nano", SMALL),
    "spatial mamba": ("spatial_mamba_nano", SMALL),
    "mamba adaptor": ("mamba_adaptor_b1", SMALL | {"patch_size": 2}),
    "vim": ("vim_nano", VIM),
    "vim without class token": ("vim_nano", VIM | {"class_token": False}),
}
CLASS = 1


def network(name):
    torch.manual_seed(0)
    kind, options = MODELS[name]
    return shaken(vssm.create_model(kind, **options)).eval()


def by_hand(model, x):
    """sum over channels of mean(gradient) map, (B, h, w), the network taken apart; before the ReLU."""
    if isinstance(model, vssm.models.Vim) and model.cls_token is not None:
        tokens = model.embed(x)
        for block in model.blocks[:-1]:
            tokens = block(tokens)
        last = model.blocks[-1]
        features = last.norm(tokens).detach().requires_grad_()
        logits = model.head(model.norm(tokens.detach() + last.mixer(features)).flatten(1, 2))
    else:
        layers = model.blocks if isinstance(model, vssm.models.Vim) else model.stages
        features = model.norm(layers(model.embed(x))).detach().requires_grad_()
        flat = isinstance(model, vssm.models.Vim)
        logits = model.head(features.flatten(1, 2) if flat else features)
    torch.testing.assert_close(logits, model(x))
    (gradient,) = torch.autograd.grad(logits[:, CLASS].sum(), features)
    rows, columns = x.shape[2] // 4, x.shape[3] // 4
    if features.shape[1] == 1:  # one row, the class token in its middle
        keep = [i for i in range(rows * columns + 1) if i != rows * columns // 2]
        features, gradient = (t[:, 0, keep].view(len(x), rows, columns, -1) for t in (features, gradient))
    assert features.shape[1:3] == (rows, columns)
    return (features * gradient.mean((1, 2), keepdim=True)).sum(-1).detach()


def grad_cam(model, x, target):
    with GradCAM(model, [target.layer], target.reshape) as cam:
        return torch.from_numpy(cam(x, [ClassifierOutputTarget(CLASS)] * len(x)))


def on_image(cam, x):
    """As pytorch-grad-cam returns it: positive, bilinear in the size of the image, from 0 to 1 before and after."""
    return scaled(interpolate(scaled(cam.relu())[:, None], x.shape[2:], mode="bilinear")[:, 0])


def scaled(cam):
    cam = cam - cam.amin((1, 2), keepdim=True)
    return cam / cam.amax((1, 2), keepdim=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_grad_cam(name, size):
    model, x = network(name), image(1, (2, 3, *size))
    want = by_hand(model, x)
    assert (want > 0).any(dim=(1, 2)).all() and want.std() > 1e-5
    target = cam_target(model)
    torch.testing.assert_close(grad_cam(model, x, target), on_image(want, x), rtol=1e-3, atol=1e-4)
    with target.channels_first() as layer:
        found = LayerGradCam(model, layer).attribute(x, CLASS)
    torch.testing.assert_close(found[:, 0], want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["vmamba", "vim", "vim without class token"])
def test_channels_first_changes_nothing(name):
    model, x = network(name), image(1, (2, 3, 32, 32))
    target = cam_target(model)
    with torch.no_grad():
        want = model(x)
        with target.channels_first() as layer:
            kept = []
            layer.register_forward_hook(lambda module, inputs, output: kept.append(output.shape))
            torch.testing.assert_close(model(x), want)
        assert torch.equal(model(x), want)
    assert len(kept) == 1 and kept[0] == (2, model.num_features, 8, 8)
    assert not target.layer._forward_hooks


def test_tokens_keep_their_places():
    """Position i of the image's patches is token i before the class token, and i + 1 behind it."""
    target = cam_target(network("vim"))
    tokens = torch.arange(65.0).view(1, 1, 65, 1)
    maps = target.reshape(tokens)
    assert maps.shape == (1, 1, 8, 8)
    assert maps.flatten().tolist() == [i for i in range(65) if i != 32]
    assert torch.equal(target.reshape(tokens.squeeze(1)), maps), "also without the row"
    whole = target.restore(-maps, tokens).flatten()
    assert whole[32] == 32 and torch.equal(whole[:32], -torch.arange(32.0)) and whole[33] == -33


@pytest.mark.parametrize(
    ("name", "options", "side"), [("vim_nano", VIM, 4), ("test_vit", {"dynamic_img_size": True}, 16)]
)
def test_the_size_of_the_images_is_noted(name, options, side):
    model = timm.create_model(name, **options).eval()
    target, kept = cam_target(model), []
    handle = target.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        for rows, columns in ((4, 16), (8, 8), (16, 4), (3, 5)):  # three of them are as many patches
            model(torch.zeros(1, 3, rows * side, columns * side))
            assert target.reshape(kept[-1]).shape[2:] == (rows, columns)
    with pytest.raises(ValueError, match="gives 64 patches, which are not 3 x 5"):
        target.reshape(kept[0])
    handle.remove()
    assert len(model.patch_embed._forward_pre_hooks) == 1
    del target
    assert not model.patch_embed._forward_pre_hooks


def test_rows_of_tokens():
    model = network("vim")
    tokens = torch.arange(97.0).view(1, 1, 97, 1)  # 32 x 48 pixels
    with pytest.raises(ValueError, match=r"gives 96 patches, which are not 8 x 8; tell the size of the images"):
        cam_target(model).reshape(tokens)
    assert cam_target(model, (32, 48)).reshape(tokens).shape == (1, 1, 8, 12)
    assert cam_target(model).reshape(torch.zeros(1, 1, 145, 1)).shape == (1, 1, 12, 12), "a square of another size"
    with pytest.raises(ValueError, match=r"gives 144 patches, which are not 8 x 12"):
        cam_target(model, (32, 48)).reshape(torch.zeros(1, 1, 145, 1))


SWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "img_size": 32, "window_size": 4}
TIMM = {
    "test_resnet": ("layer4", {}, "NCHW"),
    "test_convnext": ("stages.3", {}, "NCHW"),
    "swin_tiny_patch4_window7_224": ("layers.1", SWIN, "NHWC"),
    "test_vit": ("blocks.5.norm1", {"img_size": 32}, "NLC"),
}


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm(name):
    torch.manual_seed(0)
    where, options, form = TIMM[name]
    model = shaken(timm.create_model(name, num_classes=3, **options)).eval()
    x, kept = image(1, (2, 3, 32, 32)), []
    target = cam_target(model)
    assert target.layer is model.get_submodule(where)
    handle = target.layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(x)[:, CLASS].sum(), kept[0])
    handle.remove()
    maps = {
        "NCHW": lambda t: t,
        "NHWC": lambda t: t.permute(0, 3, 1, 2),
        "NLC": lambda t: t[:, 1:].transpose(1, 2).unflatten(2, (2, 2)),
    }[form]
    want = (maps(kept[0]) * maps(gradient).mean((2, 3), keepdim=True)).sum(1).detach()
    with target.channels_first() as layer:
        found = LayerGradCam(model, layer).attribute(x, CLASS)
    torch.testing.assert_close(found[:, 0], want, rtol=1e-4, atol=1e-6)
    if want.shape[1] > 1:  # one pixel has no map from 0 to 1
        torch.testing.assert_close(grad_cam(model, x, target), on_image(want, x), rtol=1e-3, atol=1e-4)


def test_without_maps():
    with pytest.raises(ValueError, match="Linear has no feature maps that are known"):
        cam_target(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no feature maps that are known"):
        cam_target(vssm.create_model("vmamba_nano", features_only=True))
    with torch.device("meta"):
        mixer = cam_target(timm.create_model("mixer_s16_224"))
    with pytest.raises(ValueError, match=r"the layer gives \(1, 4, 512\), not a map \(B, C, h, w\) of 512 channels"):
        mixer.reshape(torch.zeros(1, 4, 512))
    with pytest.raises(ValueError, match=r"gives \(1, 8, 4, 4\), not a map \(B, h, w, C\) of 16"):
        cam_target(network("vmamba")).reshape(torch.zeros(1, 8, 4, 4))
