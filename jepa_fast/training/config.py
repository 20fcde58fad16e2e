"""What a training run is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

# A schedule so much longer than its run hardly changes.
MOST_SCALE = 1000

# The published ImageNet-1k run: 40 of its 300 epochs are warm-up (arXiv 2301.08243, appendix A.1).
PUBLISHED_WARMUP = 40 / 300

_LEAST = {
    "image_size": 1, "frames": 1, "frame_stride": 1, "frame_memory": 0, "min_keep": 0, "batch_size": 1,
    "global_views": 1, "local_views": 0, "local_size": 1, "sigreg_slices": 1, "steps": 1, "epochs": 1,
    "context_loss_start": 0, "context_loss_end": 0,
    "warmup_steps": 0, "decay_steps": 0, "max_norm_start": 0,
    "workers": 0, "accumulate": 1, "checkpoint_every": 1, "keep_checkpoints": 1, "log_every": 1,
}  # fmt: skip
CHOICES = {
    "split": ("train", "all"),
    "context_loss_weighting": ("distance", "uniform"),
    "decay": ("cosine", "linear"),
    "precision": ("auto", "float32", "bfloat16", "pure_bfloat16"),
    "device": ("auto", "cpu", "cuda"),
    "engine": ("fast", "eager"),
    "parallel": ("ddp", "fsdp"),
    "nonfinite": ("stop", "skip"),
}


def _shown_as(unit: str, default: str | None = None) -> Any:
    """How the command line's help names the value, and its default where that depends on something."""
    return arg(metavar=unit, help_behavior_hint=f"(default: {default})" if default else None)


@dataclass(frozen=True)
class TrainConfig:
    """A training run. Rates and schedules default to those published with I-JEPA, for a batch of 2048.

    Steps are counted from 0 where a field says at which one something begins or ends.

    Raises ValueError, naming the field, for a value out of range.
    """

    data: Annotated[str, _shown_as("PATH")] = "sample"
    """Folder of images or videos, such a file, an .npz or .tar file of them, webdataset shards ("part-{000..011}.tar"),
    or "sample": four short clips from PyPI."""
    split: Literal["train", "all"] = "train"
    """Where the data has splits: train on its training part, or on all of it."""
    model: Annotated[str, _shown_as("NAME")] = "ijepa_vits8_128"
    """Name of the model."""
    model_options: Annotated[dict[str, int], _shown_as("FIELD NUMBER ...", "none")] = field(
        default_factory=dict
    )
    """Fields of the model's configuration to change, such as: depth 6 predictor_dim 192."""
    image_size: Annotated[int | None, _shown_as("PIXELS", "the model's own")] = None
    """Side of the training crops."""
    crop_scale: Annotated[tuple[float, float], _shown_as("SHARE SHARE")] = (0.3, 1.0)
    """Least and largest share of a picture that a crop covers."""
    crop_ratio: Annotated[tuple[float, float], _shown_as("RATIO RATIO", "3/4 to 4/3")] = (3 / 4, 4 / 3)
    """Least and largest width of a crop over its height."""
    flip: Annotated[float, _shown_as("SHARE")] = 0.0
    """How many crops are mirrored, 0 to 1."""
    colour: Annotated[float, _shown_as("SHARE")] = 0.0
    """How many crops have brightness, contrast, saturation and hue changed, 0 to 1."""
    gray: Annotated[float, _shown_as("SHARE")] = 0.0
    """How many crops lose their colours, 0 to 1."""
    global_views: Annotated[int, _shown_as("NUMBER")] = 2
    """LeJEPA: crops of image_size of every picture."""
    local_views: Annotated[int, _shown_as("NUMBER")] = 6
    """LeJEPA: crops of local_size of every picture."""
    local_size: Annotated[int | None, _shown_as("PIXELS", "the model's own")] = None
    """LeJEPA: side of the small crops."""
    local_scale: Annotated[tuple[float, float], _shown_as("SHARE SHARE")] = (0.05, 0.3)
    """LeJEPA: least and largest share of a picture that a small crop covers."""
    sigreg_weight: Annotated[float, _shown_as("SHARE")] = 0.02
    """LeJEPA: weight of SIGReg in the loss, 0 to 1."""
    sigreg_slices: Annotated[int, _shown_as("NUMBER")] = 1024
    """LeJEPA: directions that SIGReg draws in each step."""
    context_loss_start: Annotated[int, _shown_as("STEPS")] = 15_000
    """V-JEPA 2.1: step from which on the weight of the context loss rises from 0."""
    context_loss_end: Annotated[int, _shown_as("STEPS")] = 30_000
    """V-JEPA 2.1: step at which it has its final weight; 0 has it from the first step on."""
    context_loss_weighting: Literal["distance", "uniform"] = "distance"
    """V-JEPA 2.1: distance: context tokens far from all targets count less; uniform: all alike, as in the cool-down."""
    ragged: bool = False
    """Masks keep all their tokens; as published they are cut to the shortest of the batch."""
    min_keep: Annotated[int | None, _shown_as("PATCHES", "the sampler's own")] = None
    """I-JEPA: a mask has more than so many patches; small grids need a small number."""
    frames: Annotated[int | None, _shown_as("FRAMES", "the model's own; 1 of images")] = None
    """Frames of a sample; 1 trains a V-JEPA 2.1 on images, by their own patches and masks."""
    frame_stride: Annotated[int, _shown_as("FRAMES")] = 1
    """Of every video, take one frame in so many."""
    frame_memory: Annotated[int, _shown_as("MIB")] = 2048
    """Memory for decoded video frames; videos beyond it are decoded at every access."""
    batch_size: Annotated[int, _shown_as("IMAGES")] = 16
    """Images, or clips, per step, of all processes together."""
    accumulate: Annotated[int, _shown_as("PARTS")] = 1
    """Do each step in so many parts, one after the other, whose gradients are added: less memory."""
    steps: Annotated[int | None, _shown_as("STEPS", "as many as the epochs have")] = None
    """Optimisation steps in all."""
    epochs: Annotated[int, _shown_as("EPOCHS")] = 300
    """Passes over the data; not used when steps is given."""
    warmup_steps: Annotated[int | None, _shown_as("STEPS", "40/300 of the steps, as published")] = None
    """Steps in which the learning rate rises."""
    start_lr: Annotated[float, _shown_as("RATE")] = 2e-4
    """Learning rate that the warm-up starts from."""
    lr: Annotated[float, _shown_as("RATE")] = 1e-3
    """Learning rate after the warm-up."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate goes from lr to final_lr."""
    decay_steps: Annotated[int | None, _shown_as("STEPS", "all after the warm-up")] = None
    """In how many of the last steps it does so; 0 leaves it at lr."""
    final_lr: Annotated[float, _shown_as("RATE")] = 1e-6
    """Learning rate at the end of its schedule."""
    weight_decay: Annotated[float, _shown_as("RATE")] = 0.04
    """Weight decay at the start; biases and other one-dimensional parameters have none."""
    final_weight_decay: Annotated[float, _shown_as("RATE")] = 0.4
    """Weight decay at the end of its schedule, reached along a cosine."""
    momentum: Annotated[float, _shown_as("SHARE")] = 0.996
    """How much of itself the teacher keeps in the first update, 0 to 1."""
    final_momentum: Annotated[float, _shown_as("SHARE")] = 1.0
    """The same at the end of its schedule, reached linearly."""
    schedule_scale: Annotated[float, _shown_as("FACTOR")] = 1.0
    """The schedules are as long as so many times the steps, and cut off with the run; the V-JEPAs have 1.25."""
    seed: Annotated[int, _shown_as("SEED")] = 0
    """Seed of the initial weights, the order of the data, the crops and the masks."""
    max_norm: Annotated[float | None, _shown_as("NORM", "no limit")] = None
    """Scale gradients of a larger norm down to this one, in each part of the model by itself."""
    max_norm_start: Annotated[int, _shown_as("STEPS")] = 0
    """Step from which on max_norm holds."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop ends the run, skip leaves its step out."""
    precision: Literal["auto", "float32", "bfloat16", "pure_bfloat16"] = "auto"
    """bfloat16: autocast; pure_bfloat16: the residual streams too; weights stay float32 in the optimizer either way.
    auto is bfloat16 on a CUDA device that has it, else float32."""
    checkpoint_activations: bool = False
    """Compute the blocks a second time in the backward pass instead of keeping what is in them."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    cuda_graph: bool = False
    """Capture the whole step for each shape of a batch, and replay it. CUDA alone, without ragged."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds the model (ddp), or a share of it (fsdp)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is CUDA where there is a device, else the CPU."""
    engine: Literal["fast", "eager"] = "fast"
    """fast: the kernels of this project; eager: the published formulation, for comparison."""
    workers: Annotated[int | None, _shown_as("PROCESSES", "on CUDA one per core, at most 8; else 0")] = None
    """Data loading processes; with 0 the training process loads the data itself."""
    output: Annotated[Path | None, _shown_as("FOLDER")] = Path("runs/ijepa")
    """Where checkpoints and metrics.jsonl go; None writes nothing."""
    weights: Annotated[Path | None, _shown_as("PATH", "drawn from the seed")] = None
    """Start from another run, a checkpoint or its folder, with its optimizer; or from a file of published weights."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too, into the output folder."""
    checkpoint_every: Annotated[int, _shown_as("STEPS")] = 500
    """Steps between two checkpoints; there is always one at the end, on Ctrl-C and on SIGTERM."""
    keep_checkpoints: Annotated[int, _shown_as("NUMBER")] = 3
    """How many of the latest checkpoints to keep."""
    log_every: Annotated[int, _shown_as("STEPS")] = 10
    """Steps between two lines of the log."""
    resume: Annotated[str | None, _shown_as("CHECKPOINT", "start anew")] = None
    """Checkpoint to continue: a file, or "latest" for the latest in the output folder; weights is then not read."""

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            self._require(name, value is None or value >= least, f"{least} or more")
        for name in ("start_lr", "lr", "final_lr", "weight_decay", "final_weight_decay"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "a finite number, 0 or more")
        for name in ("momentum", "final_momentum", "flip", "colour", "gray", "sigreg_weight"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("crop_scale", "local_scale"):
            low, high = getattr(self, name)
            self._require(name, 0 < low <= high <= 1, "0 < low <= high <= 1")
        low, high = self.crop_ratio
        self._require("crop_ratio", 0 < low <= high < float("inf"), "0 < low <= high, finite")
        self._require(
            "max_norm", self.max_norm is None or 0 < self.max_norm < float("inf"), "a finite number above 0"
        )
        self._require("schedule_scale", 1 <= self.schedule_scale <= MOST_SCALE, f"1 to {MOST_SCALE}")
        self._require(
            "accumulate",
            self.batch_size % self.accumulate == 0,
            f"a divisor of batch_size = {self.batch_size}",
        )
        self._require(
            "context_loss_start",
            self.context_loss_start <= self.context_loss_end or self.context_loss_end == 0,
            f"at most context_loss_end = {self.context_loss_end}",
        )
        self._require(
            "max_norm_start", self.max_norm is not None or self.max_norm_start == 0, "0 without max_norm"
        )
        self._require("cuda_graph", not (self.cuda_graph and self.accumulate > 1), "accumulate = 1 with it")
        # A graph would replay the lengths of the rows it was captured with, which are numbers of the host.
        self._require("cuda_graph", not (self.cuda_graph and self.ragged), "ragged = false with it")
        self._require("seed", 0 <= self.seed < 2**63, "0 to 2**63 - 1")
        for name, accepted in CHOICES.items():
            self._require(name, getattr(self, name) in accepted, " or ".join(accepted))

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
