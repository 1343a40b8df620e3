"""Holds the configuration of a training run, and converts configurations to flags and names."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro

from lowcost.data import DatasetName, Task
from lowcost.data.decoding import MAX_PIXELS

RecipeName = Literal["paper", "fast", "strong"]
Architecture = Literal[
    "implicit_rd", "explicit_rd", "circulant_rd", "implicit_circulant_rd", "linear_mix", "mobilenet", "resnet"
]
Width = Literal["A", "B", "C"]


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that train one network. SLURM, Open MPI and Cloud TPU need none of these flags."""

    coordinator: str | None = None
    """HOST:PORT of process 0."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    heartbeat_seconds: int = 100
    """Seconds without a heartbeat after which a process counts as dead, and the others end."""
    wait_seconds: int = 300
    """Seconds in which all processes must start; otherwise training ends with an error."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run: its network, its data and its files."""

    dataset: Annotated[DatasetName, tyro.conf.Positional] = "digits"
    """digits: small handwritten digits, which come with scikit-learn.
    folder: your images (PNG, JPEG, WebP, BMP, GIF, TIFF) in --data-dir DIR, as DIR/CLASS/*, of which --test-share
    become test images, or as DIR/train/CLASS/* and DIR/test/CLASS/*.
    arrays: your images, signals or volumes in --data-dir FILE.npz, or a folder of .npy files, with train_images,
    train_labels and optionally test_images, test_labels (else --test-share), and lengths of signals.
    cifar10, cifar100, stl10: array_record files of tensorflow-datasets in --data-dir, $TFDS_DATA_DIR or
    ~/tensorflow_datasets; otherwise the published archives in --data-dir, $LOWCOST_DATA or the user's cache."""
    architecture: Architecture = "implicit_rd"
    """The step of the network, with its equation in the paper.
    Reaction-diffusion: implicit_rd (11), explicit_rd (9), circulant_rd (12), implicit_circulant_rd (new).
    For comparison: linear_mix (7), mobilenet (13), resnet (3)."""
    width: Width | tuple[int, ...] = "A"
    """Channels of the blocks. A: 32, 64, 128. B: 48, 96, 192. C: 32, 64, 128, 256. Or your own: 8 16 32."""
    recipe: str = "paper"
    """paper: Adam from learning rate 0.01, halved after every fifth of the run.
    fast: a tenth of the epochs, with Muon, one cycle of the learning rate, a whitened opening layer, averaged weights,
    and, from epoch 6 on, stronger augmentation and weight decay.
    strong: fast for 60 epochs, with smoothed labels.
    FILE.json: your own, with ingredients as in experiments/common/recipes.json."""
    learning_rate: float | None = None
    """The largest learning rate. None: the recipe's."""
    flip: Literal["none", "horizontal"] | None = None
    """Whether training flips images left to right, signals in time. None: images of folder and of the
    published archives are flipped, arrays and digits are not."""
    label_smoothing: float | None = None
    """Share of the target that is spread over all classes, from 0 to below 1; for classes, tags and pixels. None: the
    recipe's."""
    class_weights: str | None = None
    """Weight of an image or pixel in the loss, by its class. auto: all classes together have equal weights, so that
    images of rare classes count more. FILE.json: {"CLASS": weight, …}. None: every image has the weight 1."""
    task: Task = "classes"
    """folder, arrays: what the network predicts. classes: the class folder of an image, or its label. tags and values:
    the columns of labels.csv in the folder, or of the label array: 0 or 1 for each tag, or numbers (regression).
    pixels: the class of every pixel or point, from DIR/train/images/* and DIR/train/masks/*, or from label arrays of
    the images' shape; detected without the flag, except for signals."""
    test_share: float = 0.2
    """folder, arrays: share of the images that become test images, chosen by their content, where there are none."""
    validation_share: float = 0.0
    """Share of the training images that become validation images, which training leaves out. It must be 0 if the data
    have validation images of their own: DIR/val of a folder, val_images of arrays."""
    keep_best: bool = False
    """Keep the weights of the epoch that is best on the validation images, in place of those of the last epoch."""
    patience: int | None = None
    """Stop after this many epochs without a better one, and keep the best. None: train all epochs."""
    init_from: str | None = None
    """Start from trained weights: a work directory, a file of `experiments.export --format safetensors`, or the name of
    a released network. The classifier starts anew unless the classes are the same."""
    freeze: tuple[str, ...] = ()
    """--init-from: layers whose weights do not change, such as opening,block1,block2_step3; block1 is all of it."""
    loaded_rate: float = 1.0
    """--init-from: factor on the learning rate of all weights but those of the classifier."""
    teacher: tuple[str, ...] = ()
    """Distillation: these trained networks, the teachers, add a loss that compares the class probabilities with their
    mean, for the same augmented images. Each is named as in --init-from. A work directory with several seeds counts as
    that number of teachers. Their classes and image size must be those of the run."""
    distill: float = 0.5
    """--teacher: share of the loss that compares with the teachers and not with the labels, above 0 and at most 1."""
    epochs: int | None = None
    """Passes over the training images. None: 300 with the recipe paper, 30 with fast, 60 with strong."""
    train_images: int | None = None
    """Train on this number of the training images, sampled at random, the same for every seed. None: all."""
    batch_size: int = 100
    """Images per optimiser step, over all devices."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation."""
    seeds: int = 1
    """Train this number of independent networks at once, with seed, seed + 1, …; report mean ± standard deviation."""
    steps_per_block: int = 4
    """Depth: steps in each block."""
    kernel_size: int | None = None
    """Points of the stencils per axis. None: those of the run that resumes, or of the network of --init-from. Otherwise
    5 for implicit_rd and implicit_circulant_rd on images that are large enough, unless the task is pixels; 3 in all
    other cases, such as signals and volumes."""
    h: float = 1.0
    """Time step; mobilenet has none."""
    reach: float = 0.0
    """implicit_rd, implicit_circulant_rd: radius in pixels over which a step couples its grid before training, that of
    its Green's function. 0: the stencils of explicit steps, whose radius is mostly below one."""
    boundary: Literal["periodic", "symmetric"] = "periodic"
    """implicit_rd, implicit_circulant_rd: what lies outside the grid of the diffusion. periodic: the opposite edge.
    symmetric: the mirror image."""
    zero_mean: bool = False
    """implicit_rd, implicit_circulant_rd: subtract from each stencil of the steps its average at every evaluation."""
    norm_budget: float | None = None
    """Keep the network's Lipschitz bound at or below this number: the logits change by at most this factor times the
    change of the image, in the Euclidean norm and in exact arithmetic. Normalisations then only subtract the mean.
    None: no bound."""
    decoder: bool = False
    """Labels of pixels: keep the poolings between the blocks, and return to the full grid by a decoder (a U-Net). The
    steps then cost less. Without it all blocks have the grid of the images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the features; weights, statistics and sums stay float32."""
    remat: bool = False
    """Recompute the features inside each block in the backward pass: more time and, by XLA's estimates, little less
    memory."""
    workdir: Path | None = None
    """Work directory, for all files of the run. None: runs/DATASET-ARCHITECTURE-WIDTH-RECIPE-seedN."""
    keep: int = 2
    """Number of checkpoints to keep; older ones are deleted."""
    evaluate_every: int = 1
    """Evaluate on the test and the validation images after every this many epochs, and after the last one. Validation
    images that choose the epoch to keep are evaluated after every epoch."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to WORKDIR/tensorboard."""
    data_dir: Path | None = None
    """Folder of the images or archives. arrays: the file."""
    download: bool = False
    """Download the archive of cifar10, cifar100 or stl10 if it is not found."""
    image_size: int | None = None
    """folder: resize the images to squares of this side. None: 64 or 32, unless all share a small size."""
    grid_axes: int | None = None
    """arrays: number of axes of the grid, 1 for signals, 2 for images, 3 for volumes. None: if clear from the shape."""
    length: int | None = None
    """arrays: resample every signal linearly to this number of points. None: keep them, with a mask if there are
    lengths."""
    max_pixels: int = MAX_PIXELS
    """folder: refuse images with more pixels than this (width times height); decoding takes 4 to 16 bytes per pixel."""
    dry_run: bool = False
    """Train a few steps, print images, weights, memory and seconds per epoch, and write no work directory."""
    cluster: Cluster = Cluster()

    @property
    def width_name(self) -> str:
        """The width in names: A, or 8-16-32."""
        return self.width if isinstance(self.width, str) else "-".join(map(str, self.width))

    @property
    def keeps_best(self) -> bool:
        """Whether the best epoch is kept."""
        return self.keep_best or self.patience is not None

    def directory(self) -> Path:
        """Returns the work directory."""
        seeds = f"seed{self.seed}" if self.seeds == 1 else f"seeds{self.seed}to{self.seed + self.seeds - 1}"
        kind = self.dataset if self.task == "classes" else f"{self.dataset}-{self.task}"
        name = f"{kind}-{self.architecture}-{self.width_name}-{Path(self.recipe).stem}-{seeds}"
        return self.workdir or Path("runs") / name


def values(config: Any, *names: str) -> dict[str, Any]:
    """Returns the values of these fields by name."""
    return {name: getattr(config, name) for name in names}


def check_counts(config: Any, *names: str) -> None:
    """Raises ValueError, naming the flag, unless these fields are at least 1, or None."""
    for name, value in values(config, *names).items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}; increase it")


_IN_NAMES = {
    "batch_size": "-batch{}",
    "train_images": "-{}images",
    "kernel_size": "-stencil{}",
    "image_size": "-{}pixels",
    "length": "-{}points",
}


def suffix(config: Any, *names: str) -> str:
    """Returns what the name of a work directory says of these fields, such as -batch96-20points; "" for defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    given = {name: value for name, value in values(config, *names).items() if value != defaults[name]}
    return "".join(_IN_NAMES[name].format(value) for name, value in given.items())


def check_batch(batch_size: int, examples: int) -> None:
    """Raises ValueError if a batch needs more than the training examples that there are."""
    if batch_size > examples:
        raise ValueError(
            f"--batch-size must be at most the {examples} training examples, got {batch_size}; decrease it"
        )


def fits(value: Any, kind: Any) -> bool:
    """Returns whether a value from a JSON file is of a field's type, such as int | None or Literal["A", "B"]."""
    arguments = get_args(kind)
    if get_origin(kind) is Literal:
        return value in arguments
    if get_origin(kind) in (list, tuple):
        return type(value) is list and all(fits(x, arguments[0]) for x in value)
    if arguments:
        return any(fits(value, one) for one in arguments)
    return type(value) is kind or (kind is float and type(value) is int) or (kind is Path and type(value) is str)


def derived(program: Any, **fields: Any) -> TrainConfig:
    """Returns the configuration of a run from the fields that a program's own configuration shares with it.

    Its stencils have 3 points per axis unless stated, as in the paper.
    """
    names = {field.name for field in dataclasses.fields(TrainConfig)} & {f.name for f in dataclasses.fields(program)}
    return TrainConfig(**{"kernel_size": 3, **values(program, *names), **fields})


def flags(config: Any, *without: str, prefix: str = "") -> list[str]:
    """Returns ["--epochs", "5", ...]: the flags of all fields that differ from their defaults.

    Args:
        config: a dataclass that tyro reads, whose defaults are values.
        without: names of fields to leave out, such as positional ones.
        prefix: what tyro puts before the names of a nested dataclass, such as "cluster.".
    """
    words: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in without or value == field.default:
            continue
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            words += flags(value, prefix=f"{name}.")
        elif isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def shown(config: Any, *without: str) -> str:
    """Returns the `flags` as one line for a page, with DIR in place of the folder of the images."""
    if getattr(config, "data_dir", None) is not None:
        config = dataclasses.replace(config, data_dir=Path("DIR"))
    return shlex.join(flags(config, *without))
