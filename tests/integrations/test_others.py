"""Our models inside other libraries: transformers, segmentation_models_pytorch, torchvision's detectors.

Each is compared with the same network outside of the library.
"""

import pytest
import timm
import torch

import vssm
from tests.hub.conftest import RUN
from vssm.hub import describe_run, write_folder

NANO = ["vmamba_nano", "spatial_mamba_nano"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained classifier of two stages and three classes, as it goes to the Hub."""
    card = describe_run(RUN, "owner/squares", license="mit", dataset="coloured squares")
    return write_folder(RUN, tmp_path_factory.mktemp("hub") / "folder", card)


def _same(maps, model, x):
    plain = model.eval().forward_intermediates(x, intermediates_only=True)
    assert len(maps) == len(plain)
    for own, theirs in zip(plain, maps, strict=True):
        torch.testing.assert_close(theirs, own)


class TestTransformers:
    @pytest.fixture(autouse=True)
    def transformers(self):
        return pytest.importorskip("transformers", reason="transformers is not installed")

    def test_a_classifier_and_back(self, transformers, folder, tmp_path):
        wrapped = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        own, x = timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), torch.randn(2, 3, 16, 16)
        torch.testing.assert_close(wrapped(pixel_values=x).logits, own(x))
        assert wrapped.config.id2label == {0: "blue", 1: "green", 2: "red"}
        hidden = wrapped(pixel_values=x, output_hidden_states=True).hidden_states
        _same(hidden, own, x)
        wrapped.save_pretrained(tmp_path / "saved")
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
        torch.testing.assert_close(again(pixel_values=x).logits, own(x))
        wrapped.gradient_checkpointing_enable()
        assert own.stages[0].grad_checkpointing is False
        assert wrapped.timm_model.stages[0].grad_checkpointing is True

    def test_features_without_a_head(self, transformers, folder):
        x = torch.randn(2, 3, 16, 16)
        wrapped = transformers.AutoModel.from_pretrained(folder).eval()
        own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        features = own.forward_features(x)
        torch.testing.assert_close(wrapped(pixel_values=x).last_hidden_state, features)
        torch.testing.assert_close(wrapped(pixel_values=x).pooler_output, own.forward_head(features, True))

    @pytest.mark.parametrize("name", [*NANO, "vim_nano"])
    def test_a_backbone_by_name(self, transformers, name):
        count = len(timm.create_model(name).feature_info)
        config = transformers.TimmBackboneConfig(backbone=name, out_indices=list(range(count)))
        backbone, x = transformers.AutoBackbone.from_config(config).eval(), torch.randn(1, 3, 32, 32)
        network = backbone._backbone.model
        assert backbone.channels == [info["num_chs"] for info in network.feature_info]
        _same(backbone(x).feature_maps, network, x)

    def test_a_trained_backbone(self, transformers, folder):
        config = transformers.TimmBackboneConfig(backbone=f"local-dir:{folder}", out_indices=[0, 1])
        backbone = transformers.AutoBackbone.from_config(config, pretrained=True).eval()
        x = torch.randn(2, 3, 16, 16)
        _same(backbone(x).feature_maps, timm.create_model(f"local-dir:{folder}", pretrained=True), x)


class TestSegmentationModels:
    @pytest.fixture(autouse=True)
    def smp(self):
        return pytest.importorskip("segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed")

    @pytest.mark.parametrize("decoder", ["Unet", "FPN", "Segformer"])
    @pytest.mark.parametrize("name", NANO)
    def test_an_encoder_by_name(self, smp, name, decoder):
        """The nano models have fewer stages than the five that decoders expect: strides 2 or 4, 8, 16."""
        strides = vssm.create_model(name, features_only=True).feature_info.reduction()
        depth = strides[-1].bit_length() - 1
        options = {"decoder_channels": (16, 8, 8, 4, 4)[-depth:]} if decoder == "Unet" else {}
        if decoder == "FPN":
            options = {"upsampling": 4}
        net = getattr(smp, decoder)(
            f"tu-{name}", encoder_weights=None, encoder_depth=depth, classes=3, **options
        ).eval()
        x = torch.randn(1, 3, 64, 96)
        assert net(x).shape[:2] == (1, 3)
        _same(net.encoder(x)[-len(strides) :], net.encoder.model.model, x)

    def test_trained_weights_of_a_folder(self, smp, folder):
        net = smp.Unet(f"tu-local-dir:{folder}", encoder_weights="yes", encoder_depth=2, decoder_channels=(8, 4)).eval()
        x = torch.randn(1, 3, 32, 32)
        _same(net.encoder(x)[1:], timm.create_model(f"local-dir:{folder}", pretrained=True), x)


@pytest.mark.parametrize("name", NANO)
def test_a_detector_of_torchvision(name):
    """Faster R-CNN on torchvision's FPN around our maps: a training step and a prediction."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

    class Neck(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model(name, features_only=True)
            self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 16)
            self.out_channels = 16

        def forward(self, x):
            return self.fpn({str(level): y for level, y in enumerate(self.body(x))})

    neck = Neck()
    levels = len(neck.body.feature_info)
    detector = FasterRCNN(
        neck,
        num_classes=3,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16,),) * levels, ((1.0,),) * levels),
        box_roi_pool=MultiScaleRoIAlign([str(level) for level in range(levels)], 7, 2),
    )
    images = [torch.rand(3, 64, 64), torch.rand(3, 48, 64)]
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}
    losses = detector(images, [target, target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    stem = neck.body.model.stem.conv1.weight.grad
    assert stem is not None and stem.abs().sum() > 0
    with torch.inference_mode():
        assert {"boxes", "labels", "scores"} == set(detector.eval()(images)[0])
