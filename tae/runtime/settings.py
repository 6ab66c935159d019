"""What each command's config may hold, apart from nodes with a `_target_`, whose signatures say it themselves."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, Built, NotNegative, Pixels, Section

Precision = Literal[
    "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true", "32", "64", "16", "bf16", 32, 64, 16
]
Interlaced = Literal["refuse", "deinterlace", "keep"]
Dtype = Literal["fp32", "fp16", "bf16"]
WeightKind = Literal["ema", "raw"]
Trained = Literal["all", "decoder", "temporal"]


class Page(Section):
    clips: NotNegative


class Average(Section):
    decay: Annotated[float, Ge(0), Lt(1)] | None


class Report(Section):
    latents: bool
    linear_codec: bool


class EncodeReport(Section):
    latents: bool


class Devices(Section):
    """The Trainer's arguments that say where a model runs."""

    accelerator: str = "auto"
    devices: AtLeastOne | str | list[int] = 1
    num_nodes: AtLeastOne = 1
    precision: Precision | None = None
    strategy: str | Built = "auto"


class Train(Section):
    data: Built
    model: Built
    loss: Built
    metrics: Mapping[str, Built] | None = None
    optimizer: Built
    scheduler: Built | None = None
    trainable: Trained
    ema: Average
    adversary: Built | None = None
    trainer: Built
    callbacks: Mapping[str, Built] | None = None
    logger: Mapping[str, Built] | None = None
    name: str
    seed: NotNegative
    resume: str | None
    init_from: str | None
    teacher: str | None
    report: Report
    page: Page
    validate_first: bool
    output_dir: str


StoredData = Annotated[dict[str, Any], ArgumentsOf("data.datamodule.ClipDataModule", optional=True)]


class PerceptualWeights(Section):
    net: Literal["vgg", "alex", "squeeze"]
    weights_path: str | None


class EvaluatedLoss(Section):
    perceptual: PerceptualWeights


class Protocol(Section):
    name: Literal["ucf101-17"] | None
    sample_posterior: bool


class Evaluate(Section):
    protocol: Protocol
    data: Built | StoredData  # null: as the checkpoint has it
    metrics: Mapping[str, Built] | None = None
    ckpt: str
    weights: WeightKind | None
    decoder: str | None
    source: str | None
    name: str
    seed: NotNegative
    report: Report
    page: Page
    loss: EvaluatedLoss
    trainer: Devices
    output_dir: str


class Prepare(Section):
    class Addresses(Section):
        videos: str
        lists: str

    class Columns(Section):
        path: str
        split: str | None
        label: str | None
        group: str | None
        caption: str | None
        start: str | None
        end: str | None

    dataset: Literal["ucf101", "mixkit", "folder", "images", "frames"]
    source: str
    output: str
    download: bool
    download_from: Addresses
    split: Literal["group", "random", "official1", "official2", "official3", "list", "none", "test"] | None
    splits_dir: str | None
    test: Annotated[float, Ge(0), Lt(1)]
    val: Annotated[float, Ge(0), Lt(1)]
    seed: int
    shuffle: bool
    group_pattern: str | None
    columns: Columns
    explode: list[str]
    captions: str | None
    root: str | None
    frame_rate: Annotated[float, Gt(0), Lt(1000)]
    timeout: AboveZero
    shard_mb: AboveZero
    reencode: bool
    interlaced: Interlaced
    shots: bool
    shot_threshold: AboveZero
    min_shot: AtLeastOne
    short_side: Annotated[int, Ge(16)] | None
    gop: AtLeastOne
    crf: Annotated[int, Ge(0), Le(51)]
    decoder: Literal["auto", "decord", "pyav", "torchcodec"]
    engine: Literal["local", "dask"]
    workers: AtLeastOne | None
    dask_address: str | None


class Verify(Section):
    shards: str
    decode: bool
    batch_size: AtLeastOne
    shuffle_buffer: AtLeastOne
    readers: AtLeastOne
    timeout: AboveZero
    engine: Literal["local", "dask"]
    workers: AtLeastOne | None
    dask_address: str | None


class Index(Section):
    shards: str | list[str]
    output: str | None
    columns: list[str]
    timeout: AboveZero
    read_tries: AtLeastOne
    read_timeout: AboveZero
    engine: Literal["local", "dask"]
    workers: AtLeastOne | None
    dask_address: str | None


class Inspect(Section):
    shards: str
    sheets: str
    clips: AtLeastOne


class Synthetic(Section):
    class Splits(Section):
        train: NotNegative
        val: NotNegative
        test: NotNegative

    output: str
    num_clips: Splits
    clip_frames: AtLeastOne
    clip_size: AtLeastOne
    clips_seed: NotNegative


class Encode(Section):
    ckpt: str
    weights: WeightKind | None
    source: str | list[str]
    output: str
    resolution: Pixels | None
    frame_stride: AtLeastOne
    interlaced: Interlaced
    dtype: Dtype
    clips_per_shard: AtLeastOne
    report: EncodeReport
    num_workers: NotNegative
    tiling: Built
    trainer: Devices


class Reconstruct(Section):
    class Device(Section):
        accelerator: str
        precision: Precision

    ckpt: str
    runtime: Literal["torch", "onnx"]
    weights: WeightKind | None
    decoder: str | None
    source: str
    output: str
    start: NotNegative
    num_frames: AtLeastOne | None
    resolution: Pixels | None
    latents_only: bool
    side_by_side: bool
    difference: bool
    interlaced: Interlaced
    tiling: Built
    trainer: Device


class Export(Section):
    ckpt: str
    weights: WeightKind | None
    output: str
    format: Literal["safetensors", "torch_export", "onnx"]
    dtype: Dtype
    metrics_json: str | None
    latents: str | None
    tiling: Built
    license: str | None
    push: bool
    repo: str | None
    private: bool


class PCA(Section):
    data: Built
    model: Built
    clips: AtLeastOne
    output: str
    seed: NotNegative


class Plan(Section):
    class Clip(Section):
        num_frames: AtLeastOne
        resolution: AtLeastOne
        batch_size: AtLeastOne
        sources: (
            Mapping[str, Annotated[dict[str, Any] | None, ArgumentsOf("data.sampling.mixture.SourceSettings")]] | None
        )
        buckets: (
            Mapping[str, Annotated[dict[str, Any] | None, ArgumentsOf("data.sampling.mixture.BucketSettings")]] | None
        )

    class Autocast(Section):
        precision: Literal["32-true", "bf16-mixed", "16-mixed"]

    model: Built
    loss: Built
    optimizer: Built
    trainable: Trained
    ema: Average
    adversary: Built | None = None
    trainer: Autocast
    data: Clip
    device: Literal["cuda", "cpu"]
    memory_gb: Annotated[float, Gt(0)] | None
    init_from: Any
    teacher: str | None


class Weights(Section):
    get: str | list[str] | None
    source: str | None


COMMAND_SETTINGS: dict[str, type[Section]] = {
    "train": Train, "evaluate": Evaluate, "prepare": Prepare, "verify": Verify, "index": Index, "inspect": Inspect,
    "synthetic": Synthetic, "encode": Encode, "reconstruct": Reconstruct, "export": Export, "plan": Plan, "weights": Weights,
    "pca": PCA,
}  # fmt: skip
