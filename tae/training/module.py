"""Training of a video autoencoder: wires model, losses, metrics and optimizer together; no mathematics here."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data.batch import Batch
from tae.adversarial.adversary import PatchAdversary
from tae.evaluation.validation import Validation
from tae.losses import Objective
from tae.losses.step import compute_loss
from tae.metrics.frame import psnr
from tae.metrics.metric import Metric
from tae.model.checkpoint_file import model_weights
from tae.model.distillation import Distillation
from tae.model.encoder_identity import encoder_sha256
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.interface import VideoAutoencoder
from tae.model.trainable import is_frozen
from tae.runtime.console import say
from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.lightning_internals import forget_logged, is_logged_step
from tae.training.nonfinite import ADVICE, StepRecord, written


def figures_of(clip: Tensor, reconstruction: Tensor, total: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is logged of a batch and its reconstruction, (b, 3, t, h, w) both; PSNR is of both rounded to uint8."""
    frames, decoded = (clip_to_frames(values.detach()).flatten(0, 1) for values in (clip, reconstruction))
    quality = psnr(frames, decoded).mean()
    return {"loss": total.detach(), **terms, "psnr": quality}


class AutoencoderModule(L.LightningModule):
    """One optimizer, one objective, metrics at each validation.

    Args:
        model: the autoencoder to train.
        loss: the objective.
        optimizer: makes the optimizer of the parameters (a partial).
        scheduler: makes the learning rate's schedule of the optimizer, stepped every step (a partial), or None.
        metrics: {name: metric} to measure at each validation.
        seed: of the posterior's noise.
        config: the resolved configuration, as plain values, to be carried in every checkpoint.
        output_dir: where a stopped run leaves its evidence.
        adversary: trained beside the model, or None.
    """

    def __init__(
        self,
        model: VideoAutoencoder,
        loss: Objective,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        metrics: Mapping[str, Metric],
        seed: int,
        config: Mapping[str, Any],
        output_dir: str | Path,
        adversary: PatchAdversary | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.loss_parameters = nn.ParameterList(loss.parameters)  # so that they are moved, trained and saved
        self.adversary = adversary
        self.adversary_state: dict[str, Any] | None = None  # of a checkpoint, until the device is known
        # Its identity, once it was asked for; that of a teacher's is known.
        self.frozen_encoder: str | None = model.decoder.of_encoder if isinstance(model, Distillation) else None
        self.seed = seed
        self.config = config
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        if adversary is not None and not loss.uses_reconstruction:
            raise UserError(
                "An adversary judges reconstructions, which no term of the loss with a weight looks at: give "
                "loss.reconstruction.weight a value above 0, or set adversary=none."
            )
        if not loss.uses_reconstruction:  # DDP would wait for the decoder's gradients, which never come
            model.decoding_modules.requires_grad_(False)
            model.corruption = None
        self.unjudged: StepRecord | None = None  # the last step, whose loss was not looked at yet
        self.validated: list[tuple[Sequence[str], Tensor]] = []  # keys, and whether each reconstruction is finite
        self.sources: set[str] = set()  # that figures were logged of
        self.measured: dict[str, dict[str, Tensor]] = {}  # figures of each of several sources that were not logged yet
        self.between_steps = False  # gradients wait for further batches (`accumulate_grad_batches`)

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained: a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if is_frozen(self.model.encoding_modules):
            self.model.encoding_modules.eval()
        return self

    def forward(self, clip: Tensor) -> Tensor:
        """Reconstruct (b, 3, t, h, w) from the posterior's mode."""
        return self.model(clip, sample_posterior=False).reconstruction

    def on_fit_start(self) -> None:
        if self.adversary is not None:
            self.adversary.prepare(self.device, scaled=self.scaler is not None, state=self.adversary_state)
            self.adversary_state = None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make the posterior's noise a function of seed, process and batch, so that a resumed run draws the same."""
        self.between_steps = True
        batches = self.trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.global_rank, batches]).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        step = self.global_step
        clip = frames_to_clip(batch["frames"])
        total, terms, out, clip = compute_loss(self.model, self.loss, clip, step, self.adversary)
        self.judge_last_step()
        self.unjudged = StepRecord(step, batch["keys"], terms)
        self.unjudged.watch("loss", total.detach())
        if "discriminator_loss" in terms:
            self.unjudged.watch("discriminators' loss", terms["discriminator_loss"])
        source = batch.get("source")
        if source is not None and source not in self.measured:
            self.measured[source] = figures_of(clip, out.reconstruction, total, terms)
        if is_logged_step(self.trainer):  # Lightning would record every step's figures and throw the others away
            if source is None:
                self.log_figures("train", figures_of(clip, out.reconstruction, total, terms))
            else:
                self.log_sources(total.detach())
            for text in self.adversary.warnings() if self.adversary is not None else ():
                rank_zero_only(say)(f"warning: {text}")
        return total

    def log_sources(self, loss: Tensor) -> None:
        """Log what was measured of each source under its own name; a mean over them would say how they were drawn.

        Measured is the first batch of each since figures were logged before: those of a rare source seldom come with a step
        that is logged. One that had no batch since then is not logged again.
        """
        self.sources.update(self.measured)
        for source in self.sources:
            forget_logged(self.trainer, f"train/{source}/")
        self.log_figures("train", {"loss": loss})
        for source, figures in self.measured.items():
            self.log_figures(f"train/{source}", figures, shown=("loss", "psnr"))

    def log_figures(self, prefix: str, figures: Mapping[str, Tensor], shown: Collection[str] | None = None) -> None:
        """Log figures of a step; on the progress bar all of them, or those `shown`."""
        for name, value in figures.items():
            self.log(f"{prefix}/{name}", value, prog_bar=shown is None or name in shown, batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if not self.between_steps and is_logged_step(self.trainer):
            self.measured.clear()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """The gradients of all batches of the step are there: the discriminators are updated with the model."""
        self.between_steps = False
        norm = None if self.adversary is None else self.adversary.update()
        if norm is not None:
            self.watch_gradient("discriminators' gradient", norm)
            self.log("train/discriminator_gradient_norm", norm)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip here: Lightning refuses a fused optimizer under any mixed precision, though only fp16's scaler minds.

        Whatever the clipping, the gradient that the optimizer gets is looked at before anything is saved.
        """
        if gradient_clip_val and gradient_clip_algorithm != "value":
            norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            if gradient_clip_val:
                nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        self.watch_gradient("gradient", norm)
        if self.adversary is not None:
            self.log("train/gradient_norm", norm)

    @property
    def scaler(self) -> Any:
        """What scales the loss under fp16, else None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def watch_gradient(self, what: str, norm: Tensor) -> None:
        """A gradient that is not finite stops the run; fp16's scaler finds it by itself, and leaves such a step out."""
        if self.unjudged is not None and self.scaler is None:
            self.unjudged.watch(what, norm)

    def judge_last_step(self, together: bool = False) -> None:
        """Stop on a loss or a gradient that was not finite, and say which clips gave it.

        A step's loss is looked at during the next step, and before anything is saved or validated. To look at it at once
        would make the host wait for the device in every step, and the device for the host after it.

        Args:
            together: stop where any process has to: the gradient is everybody's, so one bad loss is in all weights. All
                processes must call it then.

        Raises:
            UserError: the loss or the gradient was not finite.
        """
        step, self.unjudged = self.unjudged, None
        what = None if step is None else step.not_finite
        if step is not None and what is not None:
            # Before the others are asked: they name this file.
            self.write_evidence(step)
        if together and not self.trainer.strategy.reduce_boolean_decision(what is None) and what is None:
            raise UserError(
                "The loss of another process is not finite; nothing that came of it was saved. The clips of its step are in "
                f"{self.output_dir / 'nonfinite_rank*.json'}. {ADVICE}"
            )
        if step is not None and what is not None:
            raise UserError(self.about(step, what))

    def write_evidence(self, step: StepRecord) -> None:
        document = {"step": step.number, "keys": step.keys, "terms": written(step.terms)}
        write_text(self.evidence, json.dumps(document, indent=2))

    @property
    def evidence(self) -> Path:
        return self.output_dir / f"nonfinite_rank{self.global_rank}.json"

    def about(self, step: StepRecord, what: str) -> str:
        """The message of a step whose loss or gradient was not finite."""
        terms = ", ".join(f"{name}={value}" for name, value in written(step.terms).items())
        others = ""
        if what.endswith("gradient") and self.trainer.world_size > 1:
            others = " Another process' loss may have caused it: see the files of the others beside it."
        return (
            f"The {what} is not finite at step {step.number} ({terms}); nothing that came of it was saved. The clips of "
            f"this step are in {self.evidence}.{others} {ADVICE}"
        )

    def on_validation_start(self) -> None:
        self.judge_last_step(together=True)

    def on_validation_epoch_start(self) -> None:
        self.validation = Validation(self.metrics)
        self.validated = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        out = self.model(frames_to_clip(batch["frames"]), sample_posterior=False)
        self.validated.append((batch["keys"], out.reconstruction.isfinite().flatten(1).all(1)))
        self.validation.add(batch, clip_to_frames(out.reconstruction), out.latents, self.model.time_factor)

    def on_validation_epoch_end(self) -> None:
        """Average over all processes; one without a single clip takes part too.

        Raises:
            UserError: a reconstruction was not finite, here or in another process.
        """
        self.check_validated()
        for name, mean in self.validation.means().items():
            self.log(f"val/{name}", mean, sync_dist=True)  # equal already; Lightning warns without

    def check_validated(self) -> None:
        """Refuse figures of reconstructions that are not finite, in all processes together."""
        pairs = [pair for keys, finite in self.validated for pair in zip(keys, finite.tolist(), strict=True)]
        self.validated = []
        broken = [key for key, is_finite in pairs if not is_finite]
        if not self.trainer.strategy.reduce_boolean_decision(not broken):
            clip = f"validation clip {broken[0]}" if broken else "a validation clip of another process"
            raise UserError(
                f"The model's reconstruction of {clip} is not finite at step {self.global_step}, so no metric means "
                "anything. Use precision=fp32 to see whether the precision overflows, or other weights to start from."
            )

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.judge_last_step(together=True)
        checkpoint["architecture"] = self.model.architecture
        checkpoint["config"] = dict(self.config)
        checkpoint["between_steps"] = self.between_steps
        if self.adversary is not None:
            checkpoint["adversary"] = self.adversary.state_dict()
        checkpoint["starting_weights"] = self.model.starting_weights
        # Of the weights that are loaded for use, which may be their moving average. Whoever has latents looks for it.
        checkpoint["encoder"] = self.encoder_digest(checkpoint)

    def encoder_digest(self, checkpoint: Mapping[str, Any]) -> str:
        """The encoder's identity; that of a frozen one is computed for the first checkpoint alone."""
        if self.frozen_encoder is not None:
            return self.frozen_encoder
        digest = encoder_sha256(self.model.architecture, model_weights(checkpoint, "ema"))
        if is_frozen(self.model.encoding_modules):
            self.frozen_encoder = digest
        return digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the weights alone do not say.

        Raises:
            UserError: a decoder that is distilled goes on with a teacher that has another encoder.
        """
        if isinstance(self.model, Distillation) and checkpoint["encoder"] != self.frozen_encoder:
            raise UserError(
                "The decoder in this checkpoint learnt to decode the latents of another encoder than that of "
                f"teacher={self.config['teacher']}: give the teacher that it had, or start a new run."
            )
        self.model.starting_weights = checkpoint.get("starting_weights")
        self.adversary_state = checkpoint.get("adversary")
