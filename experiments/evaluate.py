"""Evaluates the newest checkpoint of a run: `python -m experiments.evaluate --workdir DIR`.

It prints the accuracy and what the network confuses, and draws confusion.png, reliability.png and mistakes.png. If the
network labels every pixel, it prints IoU and Dice of each class, and draws confusion.png and overlays.png.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from experiments.common import entry, evaluation, evaluation_plots
from experiments.common.evaluation import aligned, number_cells, percent
from experiments.common.files import check_target, csv_table, messages, write_whole
from lowcost.terminal import printable
from lowcost.train.calibration import calibration_error

PRINTED_MATRIX, PRINTED_CONFUSIONS = 20, 10
"""Print the confusion matrix of at most this number of classes; of more, this number of confusions."""
MISTAKES = 24
"""The largest number of mistakes on the sheet."""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The run to evaluate, and where to write the figures of each image."""

    workdir: Path
    """Work directory of the run."""
    data_dir: Path | None = None
    """Folder of the images, if they were moved after training."""
    part: Literal["test", "validation", "train"] = "test"
    """Part of the images to evaluate on."""
    average_flips: bool = False
    """Average the outputs of the network for each image and its mirror image, which takes twice the time. Only for
    networks with one output per image that were trained on flipped images."""
    out: Path | None = None
    """Folder for the plots. None: WORKDIR/evaluation, with --average-flips WORKDIR/evaluation-flips."""
    csv: Path | None = None
    """Also write one row per image to this file: its file or index, then its true and predicted class and the
    probability; all tags or values; or for pixels its accuracy and the IoU of each class."""


def main(arguments: EvaluateConfig) -> None:
    """Prints the figures of a run, and writes its table and its plots.

    Raises:
        ValueError, OSError: what the user can fix, in one line.
    """
    from experiments.common import runs
    from lowcost.train.loop import steps_done
    from lowcost.train.state import count_weights

    if arguments.csv is not None:
        check_target(arguments.csv, "--csv")
    ready, state = runs.reopen(arguments.workdir, arguments.data_dir)
    config, dataset, task = ready.config, ready.dataset, ready.dataset.task
    split = dataset.splits.get(arguments.part)
    if split is None:
        raise ValueError(f"--part must be test or train for a run without validation images, got {arguments.part}")
    if arguments.average_flips and "flip" not in dataset.keeps:
        raise ValueError(
            "--average-flips needs a run that flips its training images, got one without flips; leave it out"
        )
    if arguments.average_flips and task == "pixels":
        raise ValueError("--average-flips needs a network with one output per image, got the task pixels; leave it out")
    weights = count_weights(state.params) // config.seeds
    network = f"{config.architecture} {config.width_name} ({weights:,} weights) after {steps_done(state)} steps"
    if state.best:
        network += f" (best epoch of each network: {', '.join(map(str, np.atleast_1d(state.best['epoch'])))})"
    print_line = partial(print, file=messages(arguments.csv))
    mirrored = ", each averaged with its mirror image" if arguments.average_flips else ""
    print_line(f"{network}, on all {len(split):,} {arguments.part} images of {dataset.name}{mirrored}:")
    if task == "pixels":
        _of_pixels(arguments, ready, state, split, print_line)
    else:
        _of_images(arguments, ready, state, split, print_line)


def _of_images(
    arguments: EvaluateConfig, ready: Any, state: Any, split: Any, print_line: Callable[[str], None]
) -> None:
    """Prints the figures of a network with one output per image, and writes its table and its plots."""
    from lowcost.deploy.loading import configuration, temperatures
    from lowcost.train.loop import steps_done

    config, dataset, task = ready.config, ready.dataset, ready.dataset.task
    outputs = ready.outputs(state.chosen, split.images).astype(np.float64)
    if arguments.average_flips:
        outputs = (outputs + ready.outputs(state.chosen, np.flip(split.images, -2))) / 2
    labels, fitted = split.labels, None
    if task == "classes":
        fitted = temperatures(arguments.workdir, config.seeds, steps_done(state))
    if dataset.scale is not None:
        of_run = configuration(arguments.workdir)["data"]["scale"]  # the folder may hold other images than in training
        outputs, labels = outputs * of_run[1] + of_run[0], labels * dataset.scale[1] + dataset.scale[0]
    answers = evaluation.answers(task, outputs, fitted)
    names, files = [*map(printable, dataset.classes)], split.files or range(len(split))
    print_line("\n".join(by_network(task, outputs, answers, labels, config.seed)))
    print_line(f"\n{by_output(task, answers, labels, names)}")
    if arguments.csv is not None:
        deviations = 1.0 if dataset.scale is None else dataset.scale[1]
        write_whole(arguments.csv, image_table(task, dataset.classes, files, labels, answers, deviations))
    if task == "classes":
        print_line(f"\n{confused(evaluation.confusion_matrix(labels, answers.argmax(-1), len(names)), names)}\n")
        curves = {"as trained": evaluation.answers(task, outputs)}
        if fitted:
            curves[f"with temperature {', '.join(f'{t:.3g}' for t in fitted)}"] = answers
        for name, p in curves.items():
            print_line(f"{name}: expected calibration error {calibration_error(p, labels):.2%}")
        _plot(
            arguments,
            print_line,
            partial(draw, split=split, curves=curves, names=names, files=files, masked=dataset.masked),
        )


def _of_pixels(
    arguments: EvaluateConfig, ready: Any, state: Any, split: Any, print_line: Callable[[str], None]
) -> None:
    """Prints the figures of a network that labels every pixel, and writes its table and its plots."""
    from experiments.common import pixel_evaluation

    predicted, confusions = pixel_evaluation.report(ready, state.chosen, split, print_line)
    names = [*map(printable, ready.dataset.classes)]
    print_line(confused(confusions.sum(0), names, unit="points"))
    if arguments.csv is not None:
        files = split.files or range(len(split))
        write_whole(arguments.csv, pixel_evaluation.image_table(ready.dataset.classes, files, confusions))
    shown = {"split": split, "predicted": predicted, "confusions": confusions, "names": names}
    _plot(arguments, print_line, partial(pixel_evaluation.draw, **shown))


def _plot(arguments: EvaluateConfig, print_line: Callable[[str], None], draw: Callable[[Path], None]) -> None:
    """Draws into the folder for plots, or prints why not."""
    folder = arguments.out or arguments.workdir / ("evaluation-flips" if arguments.average_flips else "evaluation")
    if arguments.out or os.access(arguments.workdir, os.W_OK):
        draw(folder)
        print_line(f"plots: {printable(folder)}")
    else:
        print_line(f"no plots: {printable(arguments.workdir)} cannot be written to; choose another folder with --out")


def by_network(task: str, outputs: np.ndarray, answers: np.ndarray, labels: np.ndarray, seed: int) -> list[str]:
    """Returns a line for each network [seeds, N, K], and of several also their mean and their ensemble [N, K]."""
    name, form = {"classes": ("accuracy", ".2%"), "tags": ("mean F1", ".2%"), "values": ("mean R²", ".4f")}[task]
    figures = [evaluation.quality(task, evaluation.answers(task, x[None]), labels) for x in outputs]
    lines = []
    for i, (figure, x) in enumerate(zip(figures, outputs, strict=True), start=seed):
        loss = f", loss {evaluation.mean_cross_entropy(x, labels):.4f}" if task == "classes" else ""
        lines.append(f"seed {i}: {name} {figure:{form}}{loss}")
    if len(figures) > 1:
        lines.append(f"mean: {name} {np.mean(figures):{form}} ± {np.std(figures, ddof=1):{form}}")
        together = evaluation.quality(task, answers, labels)
        lines.append(f"ensemble: {name} {together:{form}}; all figures below are of the ensemble")
    return lines


def by_output(task: str, answers: np.ndarray, labels: np.ndarray, names: list[str]) -> str:
    """Returns a table with a line for each class, tag or value."""
    columns: dict[str, Iterable[object]]
    if task == "values":
        rmse, r2 = evaluation.value_figures(labels, answers)
        columns = {"value": names, "RMSE": [f"{x:.4g}" for x in rmse], "R²": [f"{x:.4f}" for x in r2]}
    elif task == "tags":
        recall, precision, f1 = (map(percent, x) for x in evaluation.tag_figures(labels > 0.5, answers >= 0.5))
        columns = {"tag": names, "images": (labels > 0.5).sum(0), "recall": recall, "precision": precision, "F1": f1}
    else:
        confusion = evaluation.confusion_matrix(labels, answers.argmax(-1), len(names))
        recall, precision = (map(percent, x) for x in evaluation.recall_and_precision(confusion))
        worst = {i: f"{names[j]} ({n})" for i, j, n in reversed(evaluation.confusions(confusion))}
        columns = {"class": names, "images": confusion.sum(1), "recall": recall, "precision": precision}
        columns["most often confused with"] = [worst.get(i, "-") for i in range(len(names))]
    return aligned([tuple(columns), *zip(*columns.values(), strict=True)])


def confused(confusion: np.ndarray, names: list[str], unit: str = "images") -> str:
    """Returns the confusion matrix as text, or the most frequent confusions if there are many classes."""
    if len(names) > PRINTED_MATRIX:
        pairs = [(names[i], names[j], n) for i, j, n in evaluation.confusions(confusion)[:PRINTED_CONFUSIONS]]
        return aligned([("true class", "predicted class", unit), *pairs])
    rows = [(f"{i} {name}", *(n or "." for n in confusion[i])) for i, name in enumerate(names)]
    return aligned([("true class / predicted class", *range(len(names))), *rows])


def image_table(
    task: str,
    classes: Sequence[str],
    files: Sequence[object],
    labels: np.ndarray,
    answers: np.ndarray,
    deviations: ArrayLike = 1.0,
) -> bytes:
    """Returns one row per image as CSV: its class, the predicted class and its probability; or all tags or values.

    Args:
        task: "classes", "tags" or "values".
        classes: their names.
        files: a name or an index of each image.
        labels: of each image.
        answers: of the networks, [N, K].
        deviations: of the values.
    """
    if task == "classes":
        header = ["true class", "predicted class", "probability"]
        rows = [[classes[y], classes[p.argmax()], f"{p.max():.6f}"] for y, p in zip(labels, answers, strict=True)]
    else:
        header = [f"{name} {kind}" for kind in ("true", "predicted") for name in classes]
        rows = [number_cells(x, deviations) + number_cells(y, deviations) for x, y in zip(labels, answers, strict=True)]
    return csv_table(["image", *header], [[file, *row] for file, row in zip(files, rows, strict=True)])


def draw(
    folder: Path,
    split: Any,
    curves: dict[str, np.ndarray],
    names: list[str],
    files: Sequence[object],
    *,
    masked: bool = False,
) -> None:
    """Draws confusions and mistakes by the last of the curves (name → probabilities [N, K]), and the reliability."""
    labels, answers = split.labels, [*curves.values()][-1]
    predicted, sure = answers.argmax(-1), answers.max(-1)
    confusion = evaluation.confusion_matrix(labels, predicted, len(names))
    evaluation_plots.draw_confusion(confusion, names, folder / "confusion.png")
    evaluation_plots.draw_reliability(curves, labels, folder / "reliability.png")
    wrong = evaluation.confident_mistakes(answers, labels)
    shown, titles = wrong[:MISTAKES], []
    for i in shown:
        answer = f"predicted {sure[i]:.1%}: {names[predicted[i]]}"
        titles.append((printable(files[i])[-26:], f"true: {names[labels[i]]}", answer))
    evaluation_plots.draw_mistakes(split.images[shown], titles, len(wrong), folder / "mistakes.png", masked=masked)


if __name__ == "__main__":
    entry.run(main, EvaluateConfig)
