"""Load a model and classify one image.

python examples/predict_image.py photo.jpg --weights vssm1_tiny_0230s_ckpt_epoch_264.pth
"""

import argparse

import torch

import vssm
from vssm.data.preprocess import published_preprocess
from vssm.tasks.classification import class_names


@torch.inference_mode()
def main() -> list[str]:
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("--model", default="vmamba_tiny")
    parser.add_argument("--weights", help="a checkpoint of the authors; without one the predictions are random")
    args = parser.parse_args()

    model = vssm.create_model(args.model).eval()
    if args.weights:
        print(vssm.load_checkpoint(model, args.weights))
    image = published_preprocess(args.model, use_test_size=True)(args.image)  # resize, crop and normalize as published
    probabilities = model(image[None]).softmax(-1)[0]
    names = class_names(model)
    best = probabilities.topk(5)
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        print(f"{probability:7.2%}  {names[index]}")
    return [names[index] for index in best.indices.tolist()]


if __name__ == "__main__":
    main()
