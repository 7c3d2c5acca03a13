"""The loaders of a run, as Lightning asks for them."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from vssm.data.batches import Batch, Collate, collate
from vssm.data.loaders import batches_within, evaluation_loader, normalised, size_of, training_loader
from vssm.data.sampling import ResumableSampler
from vssm.data.splits import Splits
from vssm.settings import DataSettings


class Loaders(L.LightningDataModule):
    """The loaders of one run. A resumed run starts its first epoch at the batch where the earlier one stopped."""

    def __init__(self, splits: Splits, settings: DataSettings, seed: int, collate: Collate = collate):
        super().__init__()
        self.splits, self.settings, self.seed, self.collate = splits, settings, seed, collate
        self._normalise = splits.preprocess.transform().normalise

    @property
    def train_batches(self) -> int:
        return self.batches_per_epoch(self._trainer)

    def batches_per_epoch(self, trainer: L.Trainer) -> int:
        """Batches per epoch and process. The last incomplete one is dropped, unless it is the only one."""
        batches = max(1, self._train_share(trainer) // self.settings.batch_size)
        return batches_within(batches, trainer.limit_train_batches)

    def check(self, trainer: L.Trainer) -> None:
        """Raises ValueError when an epoch, or its validation, would have no batch."""
        share, limit = self._train_share(trainer), trainer.limit_train_batches
        if share == 0:
            raise ValueError(
                f"{size_of(self._train_images)} training images are too few for {trainer.world_size} devices"
            )
        if self.batches_per_epoch(trainer) == 0:
            batches = max(1, share // self.settings.batch_size)
            raise ValueError(f"trainer.limit_train_batches: {limit} of {batches} batches is none; take a larger share")
        interval, batches = trainer.val_check_interval, self.batches_per_epoch(trainer)
        if isinstance(interval, int) and interval > batches:
            raise ValueError(f"trainer.args.val_check_interval is {interval}, an epoch has {batches} batches only")
        if size_of(self.splits.val) < trainer.world_size:
            raise ValueError(
                f"{size_of(self.splits.val)} validation images are too few for {trainer.world_size} devices; take more "
                "images or fewer devices"
            )
        if self.most_val_batches(trainer) == 0:
            batches, limit = self._val_batches(trainer), trainer.limit_val_batches
            raise ValueError(f"trainer.limit_val_batches: {limit} of {batches} batches is none; take a larger share")

    def most_val_batches(self, trainer: L.Trainer) -> int:
        """Validation batches of the first process, which has the most images."""
        return batches_within(self._val_batches(trainer), trainer.limit_val_batches)

    def _val_batches(self, trainer: L.Trainer) -> int:
        return -(-size_of(self.splits.val) // (self.settings.batch_size * trainer.world_size))

    def _train_share(self, trainer: L.Trainer) -> int:
        return size_of(self._train_images) // trainer.world_size

    @property
    def _train_images(self) -> Dataset[Any]:
        if self.splits.train is None:
            raise RuntimeError("these splits were loaded for validation only")
        return self.splits.train

    def train_dataloader(self) -> DataLoader[Any]:
        # Lightning must not ask for this before it has restored its counters, or a resumed run would start the epoch
        # again: `estimated_stepping_batches` and its like are not to be used while the optimizer is configured.
        trainer, settings = self._trainer, self.settings
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        sampler = ResumableSampler(
            size_of(self._train_images),
            self.seed,
            epoch=trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            start=done * settings.batch_size if done < self.train_batches else 0,
            rank=trainer.global_rank,
            world=trainer.world_size,
            repeats=settings.repeats,
            groups=getattr(self._train_images, "group_sizes", None),
            window=settings.shuffle_shards,
        )
        return training_loader(
            self._train_images,
            sampler,
            self.seed,
            settings.batch_size,
            drop_last=self._train_share(trainer) >= settings.batch_size,
            workers=settings.workers,
            pin_memory=self._pins,
            collate=self.collate,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return evaluation_loader(
            self.splits.val,
            self.settings.batch_size,
            rank=self._trainer.global_rank,
            world=self._trainer.world_size,
            workers=self.settings.workers,
            pin_memory=self._pins,
            collate=self.collate,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return normalised(batch, self._normalise)

    @property
    def _pins(self) -> bool:
        return self._trainer.strategy.root_device.type == "cuda"

    @property
    def _trainer(self) -> L.Trainer:
        if self.trainer is None:
            raise RuntimeError("Loaders are made for a Trainer: pass them as its datamodule")
        return self.trainer
