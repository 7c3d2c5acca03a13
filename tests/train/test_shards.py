"""A training on shards that is killed in the middle of an epoch continues to the bit."""

import numpy as np
from PIL import Image

from tests.train.interrupted import same_tensors, train
from tests.train.tiny import tiny_settings
from vssm.data.shards.pack import pack


def test_resume_is_exact(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    assert pack(tmp_path / "images", tmp_path / "packed", shard_bytes=20_000)["train"].shards > 3

    def settings(workers, **changes):
        chosen = tiny_settings(**changes)
        data = chosen.data
        data.name, data.root, data.shuffle_shards = "shards", str(tmp_path / "packed"), 2
        data.image_size, data.batch_size, data.workers = 32, 4, workers
        chosen.trainer.limit_train_batches = chosen.trainer.limit_val_batches = None
        return chosen

    _, whole_rows, whole = train(tmp_path / "whole", settings(0))
    _, resumed_rows, resumed = train(tmp_path / "resumed", settings(2, save_every_n_steps=1), kill_at=8)
    assert len(whole_rows) == 18 and resumed_rows == whole_rows
    same_tensors(resumed["state_dict"], whole["state_dict"])
