"""What the tests of several layers load."""

from pathlib import Path

import pytest
import torch

from tae import TemporalAutoencoder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with random weights, as small as one can be."""
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        TemporalAutoencoder(4, (1, 1, 1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=2).save_pretrained(folder)
    return folder
