"""Batches of several streams in turns that are drawn: each stream keeps its own workers, order and position."""

from collections.abc import Iterator, Mapping
from typing import Any

from data.batch import Batch
from data.loading.loader import ClipLoader, refuse_changes
from data.sampling.mixture import draw_stream, largest_first


class MixedLoader:
    """Iterate over the batches of several streams, each batch of one of them, whose name it has as `source`.

    Which one a batch is of follows from the seed and the batch's number in the training alone, so that all processes have
    batches of one shape in each step. The first batches are one of each stream, the largest shape first: what does not fit
    into memory fails at the start. From then on streams are drawn by their weights.

    An iteration, which the Trainer calls an epoch, has as many batches as one pass over each stream has together. Each
    stream counts its own epochs and takes each of its clips once in every one of them; one with more than its share of the
    weights is gone through more often.

    `state_dict` and `load_state_dict` are found and used by Lightning, as those of `ClipLoader`.

    Args:
        loaders: of training, by the name of the stream.
        weights: of each stream.
        seed: of the draws.
    """

    def __init__(self, loaders: Mapping[str, ClipLoader], weights: Mapping[str, float], seed: int) -> None:
        self.loaders = dict(loaders)
        self.weights = {name: weights[name] for name in self.loaders}
        self.seed = seed
        self._names = list(self.loaders)
        shapes = [loader.sampling.window.shape(loader.sampling.batch_size) for loader in self.loaders.values()]
        self._first = [self._names[place] for place in largest_first(shapes)]
        self._given = 0

    def __len__(self) -> int:
        """Batches of one iteration, the same in every process."""
        return sum(map(len, self.loaders.values()))

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            name = self.stream_of(self._given)
            batch = self.loaders[name].next_batch()
            self._given += 1
            batch["source"] = name
            yield batch

    def stream_of(self, batch: int) -> str:
        """The name of the stream that the n-th batch of a training is of."""
        if batch < len(self._first):
            return self._first[batch]
        return self._names[draw_stream(list(self.weights.values()), self.seed, batch)]

    def close(self) -> None:
        """End the workers of all streams."""
        for loader in self.loaders.values():
            loader.close()

    def state_dict(self) -> dict[str, Any]:
        """How many batches were handed out, and where each stream stands. All processes must call it together."""
        streams = {name: loader.state_dict() for name, loader in self.loaders.items()}
        return {"layout": self._layout_summary(), "given": self._given, "streams": streams}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken.

        Raises:
            UserError: the order would be another one now: other sources or weights, or what `ClipLoader` refuses.
        """
        before, now = state["layout"], self._layout_summary()
        if "streams" not in state:  # of one stream
            before, now = {"data.sources": None}, {"data.sources": now["data.sources"]}
        refuse_changes("The order of the training batches", before, now)
        for name, loader in self.loaders.items():
            loader.load_state_dict(state["streams"][name])
        self._given = state["given"]

    def _layout_summary(self) -> dict[str, Any]:
        return {
            "data.sources": ", ".join(f"{name} {weight:g}" for name, weight in self.weights.items()),
            "seed": self.seed,
        }
