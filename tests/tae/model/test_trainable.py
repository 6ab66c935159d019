"""What is trained and what stays: parameters, gradients, activations, and the identity of the encoder."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tae import TemporalAutoencoder, UserError
from tae.model.encoder_identity import encoder_sha256
from tae.model.pretrained import LoadedModel, load_model
from tae.model.trainable import freeze, is_frozen

SMALL = {"channel_multipliers": (1, 1, 1, 2), "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 2}


def make(trainable: str = "all", **changes: object) -> TemporalAutoencoder:
    torch.manual_seed(0)
    model = TemporalAutoencoder(4, **(SMALL | changes))
    freeze(model, trainable)
    return model


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_is_trained() -> None:
    names = {name for name, _ in make().named_parameters()}
    assert trained(make("all")) == names
    assert trained(make("decoder")) == {name for name in names if name.startswith("decoder.")}
    image = {name for name in names if name not in trained(make("temporal"))}
    # An image autoencoder has these parts, and no others: `diffusers` names them alike.
    parts = ("spatial", "norm", "shortcut", "query", "key", "value", "output")
    assert all(any(part in name for part in parts) and ".temporal" not in name for name in image)
    assert all(".temporal" in name for name in names - image)
    with pytest.raises(UserError, match="trainable=encoder is unknown"):
        freeze(make(), "encoder")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(checkpointing: bool) -> None:
    model = make("decoder")
    model.gradient_checkpointing = checkpointing
    saved: list[torch.Size] = []
    clip = torch.rand(1, 3, 8, 16, 16)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        posterior = model.encode(clip)
        assert saved == []
        assert not posterior.mean.requires_grad
        model.decode(posterior.mode()).sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())
    assert not model.encoder.training
    assert model.decoder.training
    assert is_frozen(model.encoder)


def digest(model: TemporalAutoencoder) -> str:
    return encoder_sha256(model.architecture, model.state_dict())


def test_the_identity_of_an_encoder_is_what_latents_depend_on(tmp_path: Path) -> None:
    model = make()
    original = digest(model)
    with torch.no_grad():
        model.decoder.conv_out.spatial.bias += 1
    assert digest(model) == original
    deeper = make(decoder_blocks=2)
    deeper.encoder.load_state_dict(model.encoder.state_dict())
    assert digest(deeper) == original
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path).encoder == original
    assert digest(model.to(memory_format=torch.contiguous_format)) == original  # of values, not of bytes
    for changes in (
        {"group_norm": "clip"},
        {"temporal_padding": "zeros"},
    ):  # the same weights, another function of them
        other = make(**changes)
        other.load_state_dict(model.state_dict())
        assert digest(other) != digest(model)
    with torch.no_grad():
        model.encoder.conv_in.spatial.bias[0] += 1e-7
    assert digest(model) != original


def test_latents_are_known_by_the_encoder_and_before_it_was_noted_by_the_file() -> None:
    loaded = LoadedModel(make(), "a", "file", None)
    assert loaded.encoded({"path": "b", "sha256": "another file", "encoder": loaded.encoder})
    assert not loaded.encoded({"path": "a", "sha256": "file", "encoder": "another"})
    assert loaded.encoded({"path": "a", "sha256": "file"})
    assert not loaded.encoded({"path": "a", "sha256": "another file"})
