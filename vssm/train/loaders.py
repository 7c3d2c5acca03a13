"""From data sets to the batches of a run."""

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from vssm.data.batches import Batch, Forgiving, collate
from vssm.data.imagefolder import ImageFolder
from vssm.data.sampling import ResumableSampler, SeededSamples, ShardSampler
from vssm.data.transforms import PixelTransform
from vssm.settings import DataSettings
from vssm.train.splits import Splits


def _as_pixels(dataset: Dataset) -> Dataset:
    """The same images before normalisation, where that is the last step."""
    if isinstance(dataset, ImageFolder) and PixelTransform.possible(dataset.transform):
        return dataset.with_samples(dataset.samples, PixelTransform(dataset.transform))  # type: ignore[arg-type]
    return dataset


class Loaders(L.LightningDataModule):
    """The loaders of one run. A resumed run starts its first epoch at the batch where the earlier one stopped."""

    def __init__(self, splits: Splits, settings: DataSettings, seed: int):
        super().__init__()
        self.splits, self.settings, self.seed = splits, settings, seed
        self._normalise = splits.preprocess.transform().normalise

    @property
    def train_batches(self) -> int:
        return self.batches_per_epoch(self._trainer)

    def batches_per_epoch(self, trainer: L.Trainer) -> int:
        """Batches per epoch and process. The last incomplete one is dropped, unless it is the only one."""
        batches = max(1, self._train_share(trainer) // self.settings.batch_size)
        limit = trainer.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)

    def _train_share(self, trainer: L.Trainer) -> int:
        return len(self._train_images) // trainer.world_size  # type: ignore[arg-type]

    @property
    def _train_images(self) -> Dataset:
        if self.splits.train is None:
            raise RuntimeError("these splits were loaded for validation only")
        return self.splits.train

    def train_dataloader(self) -> DataLoader:
        # Lightning must not ask for this before it has restored its counters, or a resumed run would start the epoch
        # anew: `estimated_stepping_batches` and its like are not to be used while the optimizer is configured.
        trainer, settings = self._trainer, self.settings
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        sampler = ResumableSampler(
            len(self._train_images),  # type: ignore[arg-type]
            self.seed,
            epoch=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            start=done * settings.batch_size if done < self.train_batches else 0,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        drop_last = self._train_share(trainer) >= settings.batch_size
        return self._loader(SeededSamples(_as_pixels(self._train_images), self.seed), sampler, drop_last)

    def val_dataloader(self) -> DataLoader:
        trainer = self._trainer
        sampler = ShardSampler(len(self.splits.val), trainer.global_rank, trainer.world_size)  # type: ignore[arg-type]
        return self._loader(Forgiving(_as_pixels(self.splits.val)), sampler, drop_last=False)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalises what the loader left as pixels, on the device."""
        if batch.images.dtype != torch.uint8:
            return batch
        return batch._replace(images=self._normalise(batch.images))

    @property
    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("Loaders are made for a Trainer: pass them as its datamodule")
        return self.trainer

    def _loader(self, dataset: Dataset, sampler, drop_last: bool) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.settings.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.settings.workers,
            persistent_workers=self.settings.workers > 0,
            collate_fn=collate,
            pin_memory=self._trainer.strategy.root_device.type == "cuda",
        )
