"""The adversary of the autoencoder: discriminators with their own optimizer, trained on what the step has decoded anyway.

It is no nn.Module: nothing of it is among the autoencoder's parameters, in DDP's buckets or in an exported model. A step is
counted by the autoencoder's optimizer alone, which Lightning steps; the adversary's own steps with it.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from tae.adversarial.discriminators import make_discriminators, share_of_right
from tae.adversarial.losses import AdversarialLoss, discriminator_loss, generator_loss, lecam_penalty, r1_penalty
from tae.runtime.annotations import AboveZero, AtLeastOne, NotNegative, Weight
from tae.runtime.errors import UserError
from tae.runtime.schema import check_arguments

MEMORY_OF_LOGITS = 0.99  # of the moving averages for LeCAM, as in its code
SMALLEST_GRADIENT, LARGEST_FACTOR = 1e-4, 1e4  # of the adaptive weight, as in VQGAN
WINNING, DEAD_GAP, PATIENCE = 0.98, 0.01, 2_000  # accuracy, difference of mean logits, steps
ADVICE_FOR = {
    "wins": f"The discriminator has been right in more than {WINNING:.0%} for {PATIENCE:,} steps: its gradient teaches the "
    "autoencoder little. Lower adversary.optimizer.lr, give adversary.r1=1 or adversary.lecam=1e-3, or fewer channels.",
    "is dead": f"The discriminator's logits of originals and reconstructions have differed by less than {DEAD_GAP} for "
    f"{PATIENCE:,} steps: it tells nothing apart. Raise adversary.optimizer.lr, or lower adversary.r1 and adversary.lecam.",
}


class PatchAdversary:
    """Discriminators of frames and of clips, and what they add to the autoencoder's loss.

    Step `start` is the first in which the discriminators are trained; for `alone` steps they are trained and the autoencoder
    does not hear of them; then their weight rises over `ramp` steps. Both are updated from the same batch and decoding.

    Args:
        start, alone, ramp: in steps of the autoencoder.
        weight: of the adversarial term when the ramp is over.
        mode: "fixed", or "adaptive": times the gradient norm of the rest of the loss by that of the adversarial term, both
            of the decoder's last layer (VQGAN, arXiv 2012.09841, equation 7).
        loss: "hinge" or "pair".
        frame_channels, clip_channels: of the first layer of the discriminator of frames and of that of clips; 0: none.
        layers: of each discriminator that halve height and width; a patch is about 70 pixels wide with 3.
        r1: weight / 2 of the gradient penalty on originals.
        r1_deviation: of the noise by which it is measured.
        lecam: weight of the penalty on logits that leave their own averages.
        optimizer: makes the discriminators' optimizer (a partial).
        max_norm: that their gradient is clipped to; None: not clipped.

    Raises:
        UserError: there is no discriminator, or an argument is out of its range.
    """

    def __init__(
        self,
        start: NotNegative,
        alone: NotNegative,
        ramp: NotNegative,
        weight: Weight,
        mode: Literal["adaptive", "fixed"],
        loss: AdversarialLoss,
        frame_channels: NotNegative,
        clip_channels: NotNegative,
        layers: AtLeastOne,
        r1: Weight,
        r1_deviation: AboveZero,
        lecam: Weight,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        max_norm: AboveZero | None,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "optimizer")}
        check_arguments(PatchAdversary, arguments)
        if not frame_channels and not clip_channels:
            raise UserError("adversary.frame_channels=0 and clip_channels=0 leave no discriminator: give one a number.")
        self.start, self.alone, self.ramp = start, alone, ramp
        self.weight, self.mode, self.loss = weight, mode, loss
        self.r1, self.r1_deviation, self.lecam = r1, r1_deviation, lecam
        self.max_norm = float("inf") if max_norm is None else max_norm
        self.smallest = 2**layers  # pixels
        self.networks = make_discriminators(frame_channels, clip_channels, layers).eval()
        self.optimizer = optimizer(self.networks.parameters())
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.logit_means: dict[str, Tensor] = {}  # real, fake, of each discriminator, for LeCAM
        self.streaks = torch.zeros(2, dtype=torch.long)  # steps in a row of: wins, is dead
        self.batches = 0  # whose gradients wait for the update
        self.claimed = False

    def prepare(self, device: torch.device, scaled: bool, state: dict[str, Any] | None = None) -> None:
        """Move to the device, the same in all processes.

        Args:
            scaled: gradients are scaled, as fp16 needs.
            state: of a checkpoint.
        """
        self.networks.to(device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.streaks = self.streaks.to(device)
        if state is not None:
            self.load_state_dict(state)
        for tensor in self.networks.state_dict().values() if is_distributed() else ():
            dist.broadcast(tensor, 0)

    def factor(self, step: int) -> float:
        """The share of `weight` that a step's adversarial term has."""
        done = step - self.start - self.alone
        if done < 0:
            return 0.0
        return min(1.0, (done + 1) / self.ramp) if self.ramp else 1.0

    def __call__(
        self, clip: Tensor, reconstruction: Tensor, total: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Train the discriminators on a batch, and add what they say of it to the autoencoder's loss.

        Both look at each other as the last step left them; `update` is called when the autoencoder is updated.

        Shapes:
            clip, reconstruction: (b, 3, t, h, w) in [-1, 1]
            total:                () float32, the rest of the loss

        Args:
            last_layer: a parameter of the decoder by which an adaptive weight is measured.
            step: counted from 0.

        Returns:
            the loss, and what is logged, without gradient; nothing of it before `start`.

        Raises:
            UserError: the frames are too small for the discriminators.
        """
        if min(clip.shape[-2:]) < self.smallest:
            raise UserError(
                f"Frames of {clip.shape[-2]}x{clip.shape[-1]} are too small for adversary.layers, which halve them to less "
                f"than a pixel: give data.resolution={self.smallest} or more, or fewer layers."
            )
        if step < self.start:
            if not self.claimed:
                self.claim(clip, reconstruction, total, last_layer)
            return total, {}
        self.claimed = True
        figures = self.train_discriminators(clip, reconstruction.detach())
        factor = self.factor(step)
        adversarial = torch.zeros_like(total)
        weight = torch.zeros_like(total)
        if factor:
            adversarial = self.adversarial_term(clip, reconstruction)
            weight = factor * self.weight * self.balance(total, adversarial, last_layer)
            total = total + weight * adversarial
        return total, {"adversarial": adversarial.detach(), "adversarial_weight": weight, **figures}

    def claim(self, clip: Tensor, reconstruction: Tensor, total: Tensor, last_layer: Tensor) -> None:
        """Do all that a step of the last phase does, and undo it: what does not fit fails in the first step or never."""
        before = copy.deepcopy(self.state_dict())
        self.train_discriminators(clip, reconstruction.detach())
        adversarial = self.adversarial_term(clip, reconstruction)
        self.balance(total, adversarial, last_layer)
        torch.autograd.grad(adversarial, reconstruction, retain_graph=True)
        self.update()
        self.load_state_dict(before)
        self.claimed = True

    def train_discriminators(self, clip: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Add a batch's gradients to the discriminators'; give figures of it, means over the discriminators."""
        losses, figures = [], []
        for name, network in self.networks.items():
            network.train()  # one step of spectral normalisation's power iteration, for all that follows
            with torch.autocast(clip.device.type, enabled=torch.is_autocast_enabled(clip.device.type) and not self.r1):
                real = network(clip)
            network.eval()
            fake = network(reconstruction)
            loss = discriminator_loss(self.loss, real, fake)
            means = torch.stack([real.detach().float().mean(), fake.detach().float().mean()])
            accuracy = share_of_right(real, fake, pairs=self.loss == "pair")
            figures.append(torch.stack([loss.detach(), *means, accuracy]))
            if self.r1:
                with torch.autocast(clip.device.type, enabled=False):
                    loss = loss + self.r1 / 2 * r1_penalty(network, clip.float(), real, self.r1_deviation)
            if self.lecam:
                self.remember(name, means)
                loss = loss + self.lecam * lecam_penalty(real, fake, *self.logit_means[name])
            losses.append(loss)
        self.scaler.scale(torch.stack(losses).mean()).backward()
        self.batches += 1
        loss, real, fake, accuracy = torch.stack(figures).mean(0)
        lasting = torch.stack([accuracy > WINNING, (real - fake).abs() < DEAD_GAP])
        self.streaks = (self.streaks + 1) * lasting
        return {
            "discriminator_loss": loss,
            "discriminator_accuracy": accuracy,
            "logits_real": real,
            "logits_fake": fake,
        }

    def remember(self, name: str, means: Tensor) -> None:
        """Take the mean logits of a batch, of all processes, into their moving averages."""
        average_over_processes([means])
        self.logit_means[name] = torch.lerp(means, self.logit_means.get(name, means), MEMORY_OF_LOGITS)

    def adversarial_term(self, clip: Tensor, reconstruction: Tensor) -> Tensor:
        """The generator's loss; its gradient goes to the reconstruction alone."""
        self.networks.requires_grad_(False)
        terms = []
        for network in self.networks.values():
            with torch.no_grad():
                real = network(clip) if self.loss == "pair" else torch.zeros(())
            terms.append(generator_loss(self.loss, real, network(reconstruction)))
        self.networks.requires_grad_(True)
        return torch.stack(terms).mean()

    def balance(self, total: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
        """The factor of an adaptive weight, the same in all processes; 1 where the weight is fixed."""
        if self.mode == "fixed":
            return torch.ones_like(total)
        scale = self.scaler.get_scale()  # else fp16 would lose the gradients of means
        gradients = [
            torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0].float() / scale
            for loss in (total, adversarial)
        ]
        average_over_processes(gradients)
        wanted, found = (gradient.norm() for gradient in gradients)
        return (wanted / (found + SMALLEST_GRADIENT)).nan_to_num(LARGEST_FACTOR).clamp(max=LARGEST_FACTOR)

    def update(self) -> Tensor | None:
        """Step the discriminators' optimizer, where a batch waits for it.

        Returns:
            the gradient's norm before it was clipped, None where there was nothing to do.
        """
        if not self.batches:
            return None
        parameters = list(self.networks.parameters())
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        average_over_processes(gradients, divisor=self.batches)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.batches = 0
        return norm

    def warnings(self) -> list[str]:
        """What is wrong and what helps, each time after so many steps of it; waits for the device."""
        return [
            text for text, steps in zip(ADVICE_FOR.values(), self.streaks.tolist(), strict=True) if steps >= PATIENCE
        ]

    def state_dict(self) -> dict[str, Any]:
        """All that it remembers from one step to the next."""
        return {
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "logit_means": dict(self.logit_means),
            "streaks": self.streaks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.logit_means = {name: means.to(self.streaks.device) for name, means in state["logit_means"].items()}
        self.streaks = state["streaks"].to(self.streaks.device)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def average_over_processes(tensors: list[Tensor], divisor: int = 1) -> None:
    """Divide tensors, in place, and give each the mean of all processes'; one exchange for all of them."""
    if not is_distributed():
        if divisor > 1:
            torch._foreach_div_(tensors, divisor)
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= divisor * dist.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
