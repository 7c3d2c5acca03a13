"""A run of seconds: a small VMamba with stochastic depth on a few batches of digits."""

from vssm.settings import DataSettings, ModelSettings, OptimSettings, Settings, TrainerSettings

MODEL_ARGS = {"dims": [8, 16], "depths": [1, 1]}


def tiny_settings(**changes) -> Settings:
    return Settings(
        model=ModelSettings("vmamba_nano", drop_path=0.3, args=dict(MODEL_ARGS)),
        data=DataSettings("digits", batch_size=16),
        optim=OptimSettings(ema_decay=0.8, warmup_epochs=1, lr=3e-3),
        trainer=TrainerSettings(
            max_epochs=3, accelerator="cpu", limit_train_batches=4, limit_val_batches=3, log_every_n_steps=1
        ),
        **changes,
    )
