"""One training step for all: what the planner and the benchmarks take is what the Trainer makes of the module."""

import lightning as L
import torch
from torch.utils.data import DataLoader

from tae import TemporalAutoencoder
from tae.losses import KL, Objective, Reconstruction
from tae.losses.step import training_step
from tae.training.module import AutoencoderModule

SMALL = {"base_channels": 8, "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 4}


def test_a_step_is_the_trainers(tmp_path, monkeypatch):
    torch.manual_seed(0)
    bare, trained = TemporalAutoencoder(**SMALL), TemporalAutoencoder(**SMALL)
    trained.load_state_dict(bare.state_dict())
    objective = Objective(reconstruction=Reconstruction(1.0), kl=KL(1e-6))
    frames = torch.randint(0, 256, (1, 8, 16, 16, 3), dtype=torch.uint8)

    def make_optimizer(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3)

    # The noise of the posterior, which the module draws from its own seed, and whatever else is random.
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: torch.zeros_like(x))
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.zeros(size[0] if len(size) == 1 else size))
    optimizer = make_optimizer(bare.parameters())
    for _ in range(3):
        training_step(bare, objective, optimizer, frames, torch.autocast("cpu", enabled=False))
    module = AutoencoderModule(
        trained, objective, make_optimizer, None, metrics={}, seed=0, config={}, output_dir=tmp_path
    )
    batch = {"frames": frames, "keys": ["clip"], "fps": [25.0]}
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = L.Trainer(accelerator="cpu", devices=1, max_steps=3, gradient_clip_val=1.0, **quiet)
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))
    for name, parameter in bare.state_dict().items():
        assert torch.equal(parameter, trained.state_dict()[name]), name
