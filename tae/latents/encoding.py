"""Videos to latents for training a generator: WebDataset shards, their index and their statistics.

python -m tae.encode ckpt=PATH source=FOLDER_OR_LIST_OR_SHARDS output=DIR

The list of videos is cut into shards before anything is read, so what a shard holds depends neither on how many processes
there are nor on how often the command was stopped. A process works through its shards one by one; a finished one leaves an
entry in `.finished/`, and the last step adds the entries up.
"""

import hashlib
import json
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader

from data.processes.workers import prepare_worker, worker_context
from tae.latents.sources import Piece, Pieces, Reading, Source
from tae.latents.stats import LatentStats
from tae.latents.writer import FINISHED, LatentShard, entry_path
from tae.model.autoencoder import TemporalAutoencoder
from tae.model.frame_conversion import frames_to_clip
from tae.model.posterior import DiagonalGaussian
from tae.model.pretrained import LoadedModel
from tae.model.streaming import EncoderStream
from tae.model.tiling import Tiling
from tae.runtime.console import plain_console
from tae.runtime.errors import UserError
from tae.runtime.files import write_text
from tae.runtime.signals import StopSignals, end_by_signal

SETTINGS = "settings.json"
SHOWN_REASONS = 12


def settings_of(cfg: DictConfig, loaded: LoadedModel, sources: Sequence[Source]) -> dict[str, Any]:
    """Everything on which the latents depend, and in which shard they lie."""
    lines = "\n".join(f"{source.key} {source.name} {source.content}" for source in sources)
    own = {name: cfg[name] for name in ("resolution", "frame_stride", "interlaced", "dtype", "clips_per_shard")}
    return own | {
        "checkpoint": loaded.sha256,
        "encoder": loaded.encoder,
        "precision": str(cfg.trainer.precision),
        "tiling": OmegaConf.to_container(cfg.tiling, resolve=True),
        "number of videos": len(sources),
        "list of videos": hashlib.sha256(lines.encode()).hexdigest()[:12],
    }


def settle(output: Path, settings: Mapping[str, Any]) -> None:
    """Make `output` the folder of latents with these settings.

    Raises:
        UserError: it was begun with others, holds something else, or cannot be written.
    """
    path = output / FINISHED / SETTINGS
    try:
        if not path.is_file():
            if output.is_dir() and any(entry.name != FINISHED for entry in output.iterdir()):
                raise UserError(f"output={output} holds something else. Choose a new or an empty folder.")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(settings, indent=1) + "\n")  # the same from every process
        before = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error}. Choose another folder.") from error
    # A decoder does not matter; earlier versions noted the file alone.
    indifferent = "checkpoint" if "encoder" in before else "encoder"
    if changed := [name for name in settings if name != indifferent and settings[name] != before.get(name)]:
        was = ", ".join(f"{name} was {before.get(name)} and is {settings[name]}" for name in changed)
        raise UserError(
            f"output={output} was begun with other settings: {was}. Resume with the same settings, or choose another folder."
        )


class LatentEncoding(L.LightningModule):
    """`Trainer.predict(LatentEncoding(...))`: every process encodes its videos and writes its shards.

    Args:
        shards: the videos of each shard that there is to be, the same list in every process.
        progress: shows how far this process is.
    """

    def __init__(
        self,
        model: TemporalAutoencoder,
        tiling: Tiling,
        dtype: torch.dtype,
        output: Path,
        shards: Sequence[Sequence[Source]],
        reading: Reading,
        num_workers: int,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.model = model
        self.tiling = tiling
        self.dtype_written = dtype
        self.output = output
        self.shards = shards
        self.reading = reading
        self.num_workers = num_workers
        self.progress = progress
        self.open: dict[int, LatentShard] = {}
        self.streams: dict[int, EncoderStream] = {}  # of each open shard's current clip
        self.signals = StopSignals()

    def on_predict_start(self) -> None:
        self.signals.keep(self.trainer)  # Lightning would note a SIGTERM and encode on

    def predict_dataloader(self) -> DataLoader:
        """Deal out the shards that are not finished, by what the first process finds: others may be writing already."""
        waiting = [number for number in range(len(self.shards)) if not entry_path(self.output, number).is_file()]
        waiting = self.trainer.strategy.broadcast(waiting)
        mine = {number: self.shards[number] for number in waiting[self.trainer.global_rank :: self.trainer.world_size]}
        self.task = self.progress.add_task("encoding", total=sum(map(len, mine.values())))
        workers = min(self.num_workers, len(mine))
        parallel: dict[str, Any] = {}
        if workers:
            parallel = {"multiprocessing_context": worker_context(), "worker_init_fn": prepare_worker}
        return DataLoader(Pieces(mine, self.reading), batch_size=None, num_workers=workers, **parallel)

    def predict_step(self, piece: Piece, batch_idx: int) -> int:
        if self.signals.received:
            self.stop(self.signals.received)
        shard = self.open.get(piece.shard) or LatentShard(self.output, piece.shard, self.dtype_written)
        self.open[piece.shard] = shard
        if piece.frames is not None:
            stream = self.streams.get(piece.shard) or EncoderStream(self.model, self.tiling)
            self.streams[piece.shard] = stream
            self.append(shard, piece.name, stream.push(frames_to_clip(piece.frames[None])))
        elif piece.clip is not None:
            if "fault" not in piece.clip:
                self.append(shard, piece.clip["name"], self.streams[piece.shard].flush())
            self.streams.pop(piece.shard, None)  # none where the clip's first frame could not be read
            shard.end_clip(**piece.clip)
            self.progress.advance(self.task)
        else:
            shard.finish()
            del self.open[piece.shard]
        return piece.shard  # nobody needs it, but Lightning warns of a step that gives nothing

    def append(self, shard: LatentShard, name: str, posteriors: Sequence[DiagonalGaussian]) -> None:
        """Add to the shard's current clip."""
        for posterior in posteriors:
            shard.append(name, posterior.mean, torch.exp(0.5 * posterior.logvar))

    def stop(self, number: int) -> None:
        """End by the signal, without what is half-written: nothing of an unfinished shard is kept anyway."""
        self.close()
        text = f"{signal.Signals(number).name}: stopped; finished shards are in {self.output}, the same command resumes"
        print(text, file=sys.stderr, flush=True)
        end_by_signal(self.trainer, number)

    def close(self) -> None:
        """Drop what is half-written, where the work was stopped."""
        for shard in self.open.values():
            shard.abandon()


def print_encoding(stats: LatentStats, rejected: Sequence[tuple[str, str]], output: Path) -> None:
    """Print what was encoded and, by reason, what was not."""
    table = Table("result", "", title=f"latents in {output}")
    table.add_row("clips", f"{stats.num_clips:,}")
    table.add_row("latent frames", f"{stats.num_latent_frames:,}")
    table.add_row("recommended shift, scale", f"{stats.shift:.4f}, {stats.scale:.4f}")
    table.add_row("deviation of each channel", f"{min(stats.std):.3f} to {max(stats.std):.3f}")
    table.add_row("outlier rate", f"{stats.outlier_rate:.3%}")
    for reason, files in Counter(reason for _, reason in rejected).most_common(SHOWN_REASONS):
        table.add_row(f"not encoded: {reason}", str(files))
    if rejected:
        table.add_row("all that was not encoded", str(output / "rejected.csv"))
    plain_console().print(table)
