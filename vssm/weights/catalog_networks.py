"""Detectors and segmentation networks that the authors of VMamba publish, as data: MODEL/NETWORK -> file.

1x, 3x: Mask R-CNN on COCO, 12 and 36 epochs; 160k: UPerNet on ADE20K, iterations. Figures from the authors' page.
"""

from vssm.weights.catalog import VMAMBA_FILES, VMAMBA_PAGE, Weights

__all__ = ["NETWORKS"]


def _detector(release: str, file: str, box: float, mask: float) -> Weights:
    return _file(release, file, {"box AP": box, "mask AP": mask})


def _upernet(release: str, file: str, miou: float) -> Weights:
    return _file(release, file, {"mIoU": miou})


def _file(release: str, file: str, metrics: dict[str, float]) -> Weights:
    return Weights(VMAMBA_PAGE, f"{VMAMBA_FILES}/%23{release}/{file}.pth", metrics, "mit", "arXiv:2401.10166")


_OLD, _NEW = "{}_mask_rcnn_swin_fpn_coco", "mask_rcnn_vssm_fpn_coco_{}"
_OLD_UPERNET = "{}_upernet_4xb4-160k_ade20k-512x512"
_NEW_UPERNET = "upernet_vssm_4xb4-160k_ade20k-512x512_{}"

NETWORKS: dict[str, Weights] = {
    "vanilla_vmamba_tiny/mask_rcnn_1x": _detector("v0det", _OLD.format("vssmtiny") + "_epoch_12", 46.5, 42.1),
    "vanilla_vmamba_small/mask_rcnn_1x": _detector("v0det", _OLD.format("vssmsmall") + "_epoch_12", 48.2, 43.0),
    "vanilla_vmamba_base/mask_rcnn_1x": _detector("v0det", _OLD.format("vssmbase") + "_epoch_12", 48.6, 43.3),
    "vmamba_tiny_s2l5/mask_rcnn_1x": _detector("v2det", _NEW.format("tiny_epoch_12"), 47.4, 42.7),
    "vmamba_small_s2l15/mask_rcnn_1x": _detector("v2det", _NEW.format("small_epoch_11"), 48.7, 43.7),
    "vmamba_base_s2l15/mask_rcnn_1x": _detector("v2det", _NEW.format("base_epoch_11"), 49.2, 44.1),
    "vmamba_base_s2l15/mask_rcnn_1x_bs8": _detector("v2det", _NEW.format("base_epoch_12_bs8"), 49.2, 43.9),
    "vmamba_tiny_s1l8/mask_rcnn_1x": _detector("v2det", _NEW.format("tiny_s_epoch_12"), 47.3, 42.7),
    "vanilla_vmamba_tiny/mask_rcnn_3x": _detector("v0det", _OLD.format("vssmtiny") + "_ms_3x_epoch_34", 48.5, 43.2),
    "vanilla_vmamba_small/mask_rcnn_3x": _detector("v0det", _OLD.format("vssmsmall") + "_ms_3x_epoch_34", 49.7, 44.0),
    "vmamba_tiny_s2l5/mask_rcnn_3x": _detector("v2det", _NEW.format("tiny_ms_3x_epoch_36"), 48.9, 43.7),
    "vmamba_small_s2l15/mask_rcnn_3x": _detector("v2det", _NEW.format("small_ms_3x_epoch_32"), 49.9, 44.2),
    "vmamba_tiny_s1l8/mask_rcnn_3x": _detector("v2det", _NEW.format("tiny_ms_3x_s_epoch_31"), 48.8, 43.7),
    "vanilla_vmamba_tiny/upernet_160k": _upernet("v0seg", _OLD_UPERNET.format("vssmtiny") + "_iter_160000", 47.3),
    "vanilla_vmamba_small/upernet_160k": _upernet("v0seg", _OLD_UPERNET.format("vssmsmall") + "_iter_160000", 49.5),
    "vanilla_vmamba_base/upernet_160k": _upernet("v0seg", _OLD_UPERNET.format("vssmbase") + "_iter_128000", 50.0),
    "vmamba_tiny_s2l5/upernet_160k": _upernet("v2seg", _NEW_UPERNET.format("tiny_iter_160000"), 48.3),
    "vmamba_small_s2l15/upernet_160k": _upernet("v2seg", _NEW_UPERNET.format("small_iter_144000"), 50.6),
    "vmamba_base_s2l15/upernet_160k": _upernet("v2seg", _NEW_UPERNET.format("base_iter_160000"), 51.0),
    "vmamba_tiny_s1l8/upernet_160k": _upernet("v2seg", _NEW_UPERNET.format("tiny_s_iter_160000"), 47.9),
}
