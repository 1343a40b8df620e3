"""The configuration of a training run: flags, help and types of `experiments.train` from one frozen dataclass."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lowcost.data.decoding import MAX_PIXELS

DatasetName = Literal["digits", "folder", "cifar10", "cifar100", "stl10"]
RecipeName = Literal["paper", "fast"]
Architecture = Literal[
    "implicit_rd", "explicit_rd", "circulant_rd", "implicit_circulant_rd", "linear_mix", "mobilenet", "resnet"
]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train as one. SLURM, Open MPI and Cloud TPU need none of these flags."""

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat_seconds: int = 100
    """A process that is silent for so many seconds counts as dead, and the others end."""
    wait_seconds: int = 300
    """All processes must start within so many seconds; otherwise training ends with an error."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Train a network of the paper and leave its accuracy, curves and checkpoints in a work directory.

    The same command again resumes from the last checkpoint.
    """

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """digits: real handwritten digits inside scikit-learn; folder: your images, DIR/train/CLASS/* and DIR/test/CLASS/*
    (PNG, JPEG, WebP, BMP, GIF, TIFF) under --data-dir; cifar10, cifar100, stl10: the published archives, looked for in
    --data-dir, $LOWCOST_DATA and the user's cache folder."""
    architecture: Architecture = "implicit_rd"
    """The steps: implicit (Eq. 11), explicit (Eq. 9) or circulant (Eq. 12) reaction-diffusion, the latter also
    implicit; LinearMix (Eq. 7), MobileNet (Eq. 13), or a fully coupled ResNet (Eq. 3)."""
    width: Literal["A", "B", "C"] = "A"
    """Channels: A 32-64-128, B 48-96-192, C 32-64-128-256."""
    recipe: RecipeName = "paper"
    """paper: Adam from 0.01, halved after every fifth of the run; fast: a tenth of the epochs, with a whitened opening
    layer, one cycle of the learning rate, Muon for the matrices and an average of the weights; from the sixth epoch on
    the matrices decay, and augmentation is heavier."""
    epochs: int | None = None
    """Passes over the training images; 300 for the recipe paper, 30 for fast when not given."""
    train_images: int | None = None
    """Train on so many of the training images, drawn by lot, the same for every seed; all when not given."""
    batch_size: int = 100
    """Images per optimiser step, over all devices."""
    seed: int = 0
    """Of the initial weights, the order of the images and the augmentation."""
    seeds: int = 1
    """Train so many independent networks at once, with seed, seed + 1, …, and report mean ± standard deviation."""
    steps_per_block: int = 4
    """Depth: steps in each block."""
    h: float = 1.0
    """Time step; mobilenet has none."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the features; weights, statistics and sums are float32 anyway."""
    remat: bool = False
    """Keep the features of one block at a time and compute the others again: less memory, more time."""
    workdir: Path | None = None
    """Where to write; runs/DATASET-ARCHITECTURE-WIDTH-RECIPE-seedN when not given."""
    keep: int = 2
    """Checkpoints that stay in the work directory, the newest."""
    evaluate_every: int = 1
    """Epochs from one evaluation on the test images to the next; the last epoch always has one."""
    data_dir: Path | None = None
    """Where the pictures or archives are."""
    download: bool = False
    """Get the archive of cifar10, cifar100 or stl10 if it is nowhere."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too, into WORKDIR/tensorboard."""
    image_size: int | None = None
    """folder: side of the square that images are resized to; when not given, their own size if they share one."""
    max_pixels: int = MAX_PIXELS
    """folder: refuse an image from which more pixels would have to be decoded."""
    cluster: Cluster = Cluster()

    def directory(self) -> Path:
        """The work directory."""
        seeds = f"seed{self.seed}" if self.seeds == 1 else f"seeds{self.seed}to{self.seed + self.seeds - 1}"
        name = f"{self.dataset}-{self.architecture}-{self.width}-{self.recipe}-{seeds}"
        return self.workdir or Path("runs") / name
