"""The learning curve: a JSON object a line, and TensorBoard's events beside it."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from bluesky_cdinn.errors import InvalidInput

NAME = "curve.jsonl"


class Scalars(Protocol):
    """What takes the curve's numbers; TensorBoard's writer does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Take one number of a step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class LearningCurve:
    """Appends to a run's curve; every line is whole, and holds means over the steps since the one before.

    A line's keys: ``step``, ``crystals`` seen so far, ``seconds`` of training so far, ``rate``, ``skipped``
    steps so far, ``loss``, ``scores``, and ``held_out`` where that was evaluated.

    Parameters
    ----------
    folder
        Of the run.
    after
        Step that training goes on from; what an interrupted session wrote of later ones is dropped, as
        those steps are taken again.
    scalars
        Gets every number too.
    """

    def __init__(self, folder: Path, after: int = 0, scalars: Scalars | None = None) -> None:
        path = folder / NAME
        lines = [line for line in read_curve(folder) if line["step"] <= after]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in lines))
        part.replace(path)
        self._stream = path.open("a")
        self._scalars = scalars
        self._sums: Counter[str] = Counter()
        self._steps = 0

    def take(self, loss: float, scores: dict[str, float]) -> None:
        """Count one step into the next line."""
        self._sums.update({"loss": loss, **{f"scores/{name}": value for name, value in scores.items()}})
        self._steps += 1

    def write(self, held_out: dict[str, float] | None = None, **facts: float) -> None:
        """Append a line with the means so far; nothing where no step was taken since the last."""
        if not self._steps and held_out is None:
            return
        means = {name: total / self._steps for name, total in self._sums.items()}
        scores = {name.removeprefix("scores/"): v for name, v in means.items() if name != "loss"}
        line: dict[str, Any] = facts | {"loss": means.get("loss"), "scores": scores}
        if held_out is not None:
            line["held_out"] = held_out
            means |= {f"held_out/{name}": value for name, value in held_out.items()}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        if self._scalars is not None:
            for name, value in {**means, "rate": facts["rate"]}.items():
                self._scalars.add_scalar(name, value, int(facts["step"]))
        self._sums.clear()
        self._steps = 0

    def close(self) -> None:
        """Close the files."""
        self._stream.close()
        if self._scalars is not None:
            self._scalars.close()


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """Return a run's learning curve, oldest first; a last line that a kill cut short is left out."""
    path = folder / NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def tensorboard(folder: Path, after: int = 0) -> Scalars:
    """Return a writer of TensorBoard's events in a run's folder.

    Raises
    ------
    InvalidInput
        TensorBoard isn't installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InvalidInput(
            "TensorBoard must be installed to write its events: pip install 'bluesky-cdinn[training]'"
        ) from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1)
