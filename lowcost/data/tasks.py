"""Names the tasks of data sets: what the labels are."""

from typing import Literal, get_args

Task = Literal["classes", "tags", "values", "pixels"]
"""One class, any number of tags, or several numbers (regression) per image; or one class per point of its grid."""
IGNORED = 255
"""The label of points without a class, for the task "pixels": they count neither in the loss nor in any figure."""


def check_task(task: Task) -> None:
    """Raises ValueError unless the task is one of `Task`."""
    if task not in get_args(Task):
        raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
