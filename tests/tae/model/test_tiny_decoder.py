"""A tiny decoder: sizes, how far it sees, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae import DecoderStream, Tiling, TinyDecoder, UserError
from tae.losses import Context, FeatureMatching
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.distillation import Distillation
from tae.model.pretrained import load_model
from tae.model.pretrained_decoder import load_decoder
from tae.model.tiling import decode_in_space
from tae.model.tiny_decoder import Expand, JoinedBlock
from tae.training.build import has_lone_first_frame
from tests.fakes.diffusers_models import SMALL, make


def tiny(**changes: object) -> TinyDecoder:
    """One whose blocks do something, as after training."""
    decoder = TinyDecoder(**({"latent_channels": 4, "width": 4, "blocks": 1} | changes)).eval()
    for block in (block for block in decoder.modules() if isinstance(block, JoinedBlock)):
        nn.init.normal_(block.conv.weight, std=0.2)
    return decoder


def decoded(decoder: TinyDecoder, latents: Tensor, **kept: object) -> Tensor:
    with torch.no_grad():
        return decoder.decode(latents, **kept)


def test_the_default_is_of_the_size_that_is_said() -> None:
    assert sum(parameter.numel() for parameter in TinyDecoder().parameters()) == 9_196_568


def test_it_starts_as_a_linear_decoder() -> None:
    """So that no unit is dead and every part of it learns from the first step."""
    decoder = TinyDecoder(latent_channels=4, width=4).double()
    one, other = torch.randn(2, 1, 4, 3, 2, 2, dtype=torch.float64)
    mixed = decoded(decoder, 0.25 * one + 0.75 * other)
    torch.testing.assert_close(mixed, 0.25 * decoded(decoder, one) + 0.75 * decoded(decoder, other))


@pytest.mark.parametrize("time", [1, 2])
def test_a_shortcut_repeats_what_there_is(time: int) -> None:
    """As many channels: each position in its whole cell. Half: the first of them in the first half of the cell."""

    def expanded(x: Tensor, out_channels: int) -> Tensor:
        expand = Expand(x.shape[1], out_channels, time, 2, shortcut=True)
        nn.init.zeros_(expand.conv.weight)
        nn.init.zeros_(expand.conv.get_parameter("bias"))
        with torch.no_grad():
            return expand(x)

    x = torch.randn(1, 6, 2, 3, 4)
    scale = (time, 2, 2)
    whole = F.interpolate(x, scale_factor=scale)
    assert torch.equal(expanded(x, 6), whole)
    axis = 2 if time == 2 else 3  # the slowest of a cell: time, or else height
    first, second = expanded(x, 3).unflatten(axis, (-1, 2)).unbind(axis + 1)
    at_first, at_second = whole.unflatten(axis, (-1, 2)).unbind(axis + 1)
    assert torch.equal(first, at_first[:, :3])
    assert torch.equal(second, at_second[:, 3:])


@pytest.mark.parametrize(
    ("factors", "lone", "grid", "whole"),
    [
        ((8, 8), False, (1, 1, 1), (8, 8, 8)),
        ((8, 8), False, (3, 2, 5), (24, 16, 40)),
        ((4, 8), True, (3, 2, 1), (9, 16, 8)),
        ((8, 32), True, (1, 1, 2), (1, 32, 64)),
        ((1, 4), False, (2, 1, 2), (2, 4, 8)),
    ],
)
def test_any_grid_is_decoded_and_trimmed_as_the_teacher_trims(
    factors: tuple[int, int], lone: bool, grid: tuple[int, int, int], whole: tuple[int, int, int]
) -> None:
    decoder = tiny(time_factor=factors[0], space_factor=factors[1], lone_first_frame=lone)
    latents = torch.randn(2, 4, *grid)
    clip = decoded(decoder, latents)
    assert clip.shape == (2, 3, *whole)
    frames, height, width = (max(1, extent - 3) for extent in whole)
    assert torch.equal(
        decoded(decoder, latents, num_frames=frames, size=(height, width)), clip[:, :, :frames, :height, :width]
    )
    with pytest.raises(ValueError, match=f"these latents hold \\({whole[0]}, {whole[1]}, {whole[2]}\\)"):
        decoder.decode(latents, num_frames=whole[0] + 1)
    with pytest.raises(ValueError, match=r"takes latents \(b, 4, t, h, w\)"):
        decoder.decode(torch.randn(1, 5, *grid))


def test_it_sees_as_far_back_as_ahead_and_no_further() -> None:
    """One block at each of three resolutions: 1 + 1/2 + 1/4 latent frames, to both sides, in whole frames of each."""
    decoder = tiny()
    latents = torch.randn(1, 4, 9, 2, 2)
    other = latents.clone()
    other[:, :, 4] += 1
    changed = (decoded(decoder, latents) != decoded(decoder, other)).flatten(3).any(3).any(1)[0].nonzero()[:, 0]
    assert (changed.min().item(), changed.max().item()) == (32 - 14, 39 + 14)


# Float32 through fifteen layers, whose kernels may sum in another order for another number of frames; values are about 1.
ROUNDING = 1e-5
TILED = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8, tile_pixels=24, overlap_pixels=8)
WHOLE = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8)


def streamed(decoder: TinyDecoder, latents: Tensor, pieces: list[int], tiling: Tiling, **kept: Any) -> Tensor:
    stream = DecoderStream(decoder, **kept, tiling=tiling)
    clips = [clip for piece in latents.split(pieces, 2) for clip in stream.push(piece)]
    return torch.cat(clips + stream.flush(), 2)


@pytest.mark.parametrize("lone", [False, True])
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1, 1, 1], [7], [0, 2, 0, 4, 1]], ids=str)
def test_a_stream_gives_what_the_whole_gives(pieces: list[int], lone: bool) -> None:
    """At any length: no seam in time, and in space no other than that of tiles of the whole."""
    decoder = tiny(blocks=2, lone_first_frame=lone)
    latents = torch.randn(1, 4, 7, 4, 5)
    whole = decoded(decoder, latents)
    assert (streamed(decoder, latents, pieces, WHOLE) - whole).abs().max() < ROUNDING
    kept = {"num_frames": 45, "size": (30, 37)}
    assert (streamed(decoder, latents, pieces, WHOLE, **kept) - whole[:, :, :45, :30, :37]).abs().max() < ROUNDING
    in_tiles = decode_in_space(decoder, latents, None, TILED)
    assert (in_tiles - whole).abs().max() > 100 * ROUNDING
    assert (streamed(decoder, latents, pieces, TILED) - in_tiles).abs().max() < ROUNDING


def test_any_pieces_give_the_same_bits_and_a_short_video_is_a_stream_too() -> None:
    decoder = tiny()
    for frames in (1, 2, 6):
        latents = torch.randn(1, 4, frames, 2, 3)
        one_by_one = streamed(decoder, latents, [1] * frames, WHOLE)
        assert torch.equal(streamed(decoder, latents, [frames], WHOLE), one_by_one)
        assert (one_by_one - decoded(decoder, latents)).abs().max() < ROUNDING
    assert DecoderStream(decoder).flush() == []


@pytest.mark.parametrize(("blocks", "latency"), [(1, 16), (2, 32)])
def test_the_latency_is_what_is_said(blocks: int, latency: int) -> None:
    stream = DecoderStream(tiny(blocks=blocks))
    waits, given = [], 0
    for latent in range(12):
        for clip in stream.push(torch.zeros(1, 4, 1, 1, 1)):
            assert clip.shape[2] <= 8
            waits += [8 * (latent - (given + i) // 8) for i in range(clip.shape[2])]
            given += clip.shape[2]
    assert max(waits) == stream.latency == latency
    (rest,) = stream.flush()
    assert rest.shape[2] == 12 * 8 - given <= latency


def test_a_stream_has_no_tiles_in_time_that_would_have_to_fit() -> None:
    decoder = tiny(blocks=1, time_factor=64, space_factor=64)
    latents = torch.randn(1, 4, 2, 1, 1)
    stream = DecoderStream(decoder)
    clip = torch.cat([*stream.push(latents), *stream.flush()], 2)
    assert (clip - decoded(decoder, latents)).abs().max() < ROUNDING


def test_a_folder_of_it_is_a_decoder_and_no_model(tmp_path: Path) -> None:
    decoder = tiny(encoder="ab" * 32)
    decoder.save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path)
    assert loaded.encoder == "ab" * 32
    latents = torch.randn(1, 4, 1, 2, 2)
    with torch.no_grad():
        assert torch.equal(loaded.decoder.decode(latents), decoder.decode(latents))
    with pytest.raises(UserError, match="is a tiny decoder, without an encoder: give its teacher"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "width=0 is not allowed"),
        ({"blocks": 1.5}, r"blocks=1.5 is not allowed"),
        ({"time_factor": 3}, "time_factor=3 with space_factor=8: a tiny decoder doubles"),
        ({"time_factor": 16}, "no less than time_factor"),
        ({"width": 10**5}, "beyond all bounds"),
    ],
)
def test_what_cannot_be_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TinyDecoder(**changes)


@pytest.mark.parametrize("matches", [True, False])
def test_only_the_student_learns_and_the_teacher_stays_as_it_is(matches: bool, checkpoint: Path) -> None:
    teacher = load_model(checkpoint).model
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = Distillation(teacher, tiny(latent_channels=16), matches)
    model.train()
    output = model(torch.rand(1, 3, 9, 19, 24) * 2 - 1)
    assert output.reconstruction.shape == (1, 3, 9, 19, 24)
    pairs = model.feature_pairs(output)
    assert len(pairs) == (2 if matches else 0)
    loss = output.reconstruction.square().mean() + sum((own - their).square().mean() for own, their in pairs)
    loss.backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, _ in model.named_parameters() if not name.startswith("teacher.")}
    assert not teacher.training
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_state_dict_has_no_teacher_and_is_loaded_strictly(checkpoint: Path) -> None:
    model = Distillation(load_model(checkpoint).model, tiny(latent_channels=16), True)
    state = model.state_dict()
    assert {name.partition(".")[0] for name in state} == {"decoder", "projections"}
    model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*projections\.0\.weight"):
        model.load_state_dict({name: value for name, value in state.items() if name.startswith("decoder.")})


@pytest.mark.parametrize(
    "name", ["AutoencoderKL", "AutoencoderKLCogVideoX", "AutoencoderKLLTXVideo", "AutoencoderKLWan"]
)
def test_teachers_of_diffusers(name: str) -> None:
    """Of images; causal, decoded as a whole or part by part. One latent more is a step of time more, and features match."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    teacher = DiffusersAutoencoder(make(name)).eval()
    _, size, latents = SMALL[name]
    lone = has_lone_first_frame(teacher)
    assert lone == (name != "AutoencoderKL")
    student = tiny(time_factor=teacher.time_factor, space_factor=teacher.space_factor, lone_first_frame=lone)
    model = Distillation(teacher, student, True).train()
    clip = torch.rand(2, 3, *size) * 2 - 1
    output = model(clip)
    assert output.reconstruction.shape == clip.shape
    assert student.decode(output.latents).shape == teacher.decode(output.latents).shape
    pairs = model.feature_pairs(output)
    assert [own.shape for own, _ in pairs] == [their.shape for _, their in pairs]
    assert pairs[0][1].shape[2] == latents[1]
    FeatureMatching(1.0)(Context(clip, output, model, 0)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
