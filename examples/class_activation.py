"""Where a classifier looks: Grad-CAM of pytorch-grad-cam and relevance of pixels, beside the picture.

python examples/class_activation.py --model vmamba_tiny --weights vssm1_tiny_0230s_ckpt_epoch_264.pth
"""

import argparse
from importlib.resources import files

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

import vssm
from vssm.analysis import cam_target, relevance
from vssm.data.preprocess import published_preprocess
from vssm.tasks.classification import class_names


def main() -> np.ndarray:
    parser = argparse.ArgumentParser()
    flower = str(files("sklearn.datasets.images") / "flower.jpg")
    parser.add_argument("image", nargs="?", default=flower, help="without one, a flower that scikit-learn brings along")
    parser.add_argument("--model", default="vmamba_nano")
    parser.add_argument("--weights", help="a checkpoint of the authors; without one the maps are those of chance")
    parser.add_argument("--cls", type=int, help="number of the class; without one, the most probable")
    parser.add_argument("--out", default="class_activation.png")
    args = parser.parse_args()

    model = vssm.create_model(args.model).eval()
    if args.weights:
        print(vssm.load_checkpoint(model, args.weights))
    x = published_preprocess(args.model, use_test_size=True)(args.image)

    found = relevance(model, x, args.cls)
    share = found.map.sum().item()
    print(
        f"{class_names(model)[found.cls]}: logit {found.logit:.3f} = {share:.3f} of pixels + {found.bias:.3f} of biases"
    )
    target = cam_target(model)
    with GradCAM(model, [target.layer], target.reshape) as grad_cam:
        cam = grad_cam(x[None], [ClassifierOutputTarget(found.cls)])[0]

    low, high = x.amin(), x.amax()
    shown = ((x - low) / (high - low)).permute(1, 2, 0).numpy()
    heat = show_cam_on_image(shown, cam, use_rgb=True)
    panels = np.concatenate([np.uint8(255 * shown), heat, red_and_blue(found.map)], axis=1)
    Image.fromarray(panels).save(args.out)
    print(f"picture, Grad-CAM and relevance: {args.out}")
    return panels


def red_and_blue(signed: torch.Tensor) -> np.ndarray:
    """A map (H, W) as a picture (H, W, 3): red speaks for the class, blue against it, white for neither."""
    strength = (signed / signed.abs().quantile(0.99).clamp_min(1e-30)).clamp(-1, 1)
    colours = torch.stack([1 + strength.clamp(max=0), 1 - strength.abs(), 1 - strength.clamp(min=0)], -1)
    return np.uint8(255 * colours.numpy())


if __name__ == "__main__":
    main()
