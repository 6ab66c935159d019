"""Training with a moving average of the weights: which weights are used when, and what the checkpoint holds."""

from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from tae.model.average import WeightAverage
from tae.model.checkpoint_file import MODEL_PREFIX, RAW_WEIGHTS


class MovingAverage(Callback):
    """Keeps `WeightAverage` of the autoencoder, which is what is validated and what a checkpoint's `state_dict` holds.

    The weights that are trained are beside it, under `raw_weights`; a resumed run trains on from them. Every process keeps
    the average itself: all have the same weights, so all have the same average.

    Lightning's own `EMAWeightAveraging` copies the whole module, with LPIPS; it knows no warm-up, leaves the average in the
    place of the weights where a validation fails or is stopped, so that what is saved then is mixed up, and ends with the
    weights overwritten before the last checkpoint is written.

    Args:
        decay: of the average, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: WeightAverage | None = None
        self._restored: dict[str, Tensor] | None = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called when the module has the checkpoint's `state_dict`, which is the average."""
        raw = checkpoint[RAW_WEIGHTS]
        self._restored = {name: checkpoint["state_dict"][f"{MODEL_PREFIX}{name}"] for name in raw}
        cast(nn.Module, pl_module.model).load_state_dict(raw, strict=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin when the weights are on their device."""
        self.average = WeightAverage(cast(nn.Module, pl_module.model), self.decay)
        if self._restored is not None:
            self.average.load(self._restored)
            self._restored = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self.average is not None and not pl_module.between_steps:
            self.average.update(trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average is not None:
            self.average.swap_in()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.average is not None:
            self.average.swap_out()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A validation failed or was stopped."""
        if self.average is not None:
            self.average.swap_out()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save both, right also in a validation, where the model has the average."""
        if self.average is not None:
            checkpoint[RAW_WEIGHTS] = self.average.raw()
            for name, value in self.average.values.items():
                checkpoint["state_dict"][f"{MODEL_PREFIX}{name}"] = value

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the model: where no checkpoint was written it is what is evaluated."""
        if self.average is not None:
            self.average.swap_in()
