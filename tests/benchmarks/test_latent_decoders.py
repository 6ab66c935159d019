"""The benchmark of decoders counts what they compute."""

from functools import partial

import torch

from benchmarks.latent_decoders import run, tera_flops
from tae import TinyDecoder


def test_the_arithmetic_of_a_decoder_is_counted() -> None:
    decoder, latents = TinyDecoder(latent_channels=4, width=2, blocks=1), torch.zeros(1, 4, 3, 5, 6)
    per_latent, positions = 0, 1
    for width, following in ((8, 4), (4, 2), (2, 3)):
        per_latent += positions * 9 * width * (3 * width + width + 8 * following)
        positions *= 8
    expected = 2 * 3 * 5 * 6 * (9 * 4 * 8 + per_latent)
    assert round(tera_flops(partial(run, decoder.decode, latents, (24, 40, 48))) * 1e12) == expected
