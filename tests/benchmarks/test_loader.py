import argparse
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import loader
from data.drawing import draw_clip, encode_mp4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> loader.Corpus:
    """Four files of 24 frames of 64x84, as shards, in memory and loose."""
    folder, rng = tmp_path_factory.mktemp("loader"), np.random.default_rng(0)
    (folder / "videos").mkdir()
    for number in range(4):
        (folder / "videos" / f"{number}.mp4").write_bytes(encode_mp4(draw_clip(rng, 24, 64, 84)))
    arguments = argparse.Namespace(num_frames=8, batch=1, clips=3)
    corpus = loader.find_corpus([loader.prepare_shards([folder / "videos"], folder)], arguments, folder)
    assert len(corpus.clips) == 3
    return corpus


# Pillow rounds between its two passes as the uint8 path does, float32 does not; another frame differs by more than 20.
@pytest.mark.parametrize(("size", "tolerance"), [(64, 0), (32, 3)])
@pytest.mark.parametrize("method", [name for name in loader.METHODS if name != "bare decoder"])
def test_every_way_gives_the_frames_of_the_reference(
    corpus: loader.Corpus, method: str, size: int, tolerance: int
) -> None:
    sized = replace(corpus, window=replace(corpus.window, resolution=size))
    assert loader.largest_difference(method, sized) <= tolerance
    shifted = replace(sized, videos=[*corpus.videos[1:], corpus.videos[0]])
    assert loader.largest_difference(method, shifted) > 20


@pytest.mark.parametrize("method", loader.METHODS)
def test_every_way_is_timed_over_all_but_the_margins(corpus: loader.Corpus, method: str) -> None:
    sized = replace(corpus, window=replace(corpus.window, resolution=32))
    assert loader.clips_per_second(method, sized, workers=0, passes=2) > 0


def test_too_few_batches_for_the_workers_are_refused(corpus: loader.Corpus) -> None:
    with pytest.raises(SystemExit, match="too few for 2 workers"):
        loader.clips_per_second("loader", corpus, workers=2, passes=1)
