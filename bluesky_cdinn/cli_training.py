"""The commands that make weights: train, package, evaluate.

They are mounted beside the others (`cli`), and import what computes only when they run.
"""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bluesky_cdinn.cli_options import AsJson
from bluesky_cdinn.documents import plain
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import require_writable
from bluesky_cdinn.records import Progress
from bluesky_cdinn.terminal import answering, progress_bars, stop_request

app = typer.Typer()

Steps = Annotated[int | None, typer.Option(min=1, help="Budget of the whole run, in steps.")]
Hours = Annotated[float | None, typer.Option(min=0, help="Budget of the whole run, in hours.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of each process.")]
PerClass = Annotated[int, typer.Option(min=1, help="Held-out crystals of each strength of strain.")]
Relaxed = Annotated[
    Path | None, typer.Option("--atomistic", help="A stored set of relaxed crystals that judges too.")
]
StoredAs = Literal["float32", "float16", "bfloat16"]


@app.command()
def train(
    folder: Annotated[Path, typer.Option(help="Of the run: checkpoints, learning curve, what it is.")],
    preset: Annotated[
        str | None, typer.Option(help="smoke, cpu, gpu, gpu-64, paper, or a TOML file of your own.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    steps: Steps = None,
    hours: Hours = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed sees the same crystals.")] = None,
    warm_start: Annotated[
        Path | None, typer.Option("--from", help="Weights to begin with; made on any grid.")
    ] = None,
    atomistic: Annotated[
        Path | None, typer.Option(help="A stored set of relaxed crystals to train on too.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that make crystals on the CPU; 0: the trainer does.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write its events too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a network; kill it whenever, and go on with --resume.

    On several GPUs: torchrun --nproc-per-node=N -m bluesky_cdinn.cli train ...
    """
    # Of several processes that torchrun started the first one answers.
    with answering(as_json and os.environ.get("RANK", "0") == "0") as answer:
        if resume == (preset is not None):
            raise InvalidInput("either --preset to begin a run or --resume to go on with one is required")
        if resume and not (seed is None and warm_start is None and atomistic is None):
            raise InvalidInput("--seed, --from and --atomistic are the run's own: they go with --preset only")
        if steps and hours:
            raise InvalidInput("a budget of --steps or --hours is required, not both")
        import torch

        from bluesky_cdinn.training.distributed import ranks
        from bluesky_cdinn.training.presets import changed, load_preset
        from bluesky_cdinn.training.running import begin, go_on

        if threads:
            torch.set_num_threads(threads)
        with ranks(device) as here, stop_request() as asked, _bar(here.first) as bar:
            how: dict[str, Any] = {"tensorboard_too": tensorboard, "stop": lambda: bool(asked)}
            if preset is None:
                session = go_on(folder, here, steps=steps, hours=hours, workers=workers, **how)
            else:
                chosen = changed(
                    load_preset(preset),
                    data={"atomistic": atomistic and str(atomistic.resolve())},
                    training={"steps": steps, "hours": hours, "seed": seed, "workers": workers},
                )
                session = begin(folder, chosen, here, warm_start=warm_start, **how)
            last = None
            for last in session:
                bar(Progress(f"step {last.step:,}, loss {last.loss:.3f}", min(1.0, last.share)))
        answer |= {"folder": str(folder), "stopped": bool(asked)}
        if last is not None:
            answer |= {"step": last.step, "crystals": last.crystals, "hours": last.seconds / 3600}
            answer |= {"loss": last.loss, "skipped": last.skipped}
        if not as_json and here.first:
            where = "nothing was left to do" if last is None else f"step {last.step:,}"
            print(f"{folder}: {where}; next: cdinn {'train --resume' if asked else 'package'}")


@app.command()
def package(
    folder: Annotated[Path, typer.Argument(help="Of a training run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The safetensors file to write.")],
    stored_as: Annotated[StoredAs, typer.Option(help="16 bits halve the file.")] = "float16",
    evaluate: Annotated[
        int, typer.Option(min=0, help="Held-out crystals of each strength of strain for the card's figures.")
    ] = 0,
    atomistic: Relaxed = None,
    notes: Annotated[str, typer.Option(help="What else is to be known of the run, for the card.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make weights of a run, with a model card beside them; its averaged weights are taken."""
    with answering(as_json) as answer:
        require_writable(output)
        if output.suffix != ".safetensors":
            raise InvalidInput(f"the file's name must end in .safetensors, got {output.name}")
        from bluesky_cdinn.training.packaging import package as write

        weights = write(folder, output, stored_as, notes=notes)
        if evaluate:
            weights = write(folder, output, stored_as, _rows(output, evaluate, atomistic), notes)
        card = output.with_suffix(".md")
        answer |= {"output": str(output), "card": str(card), "sha256": weights.sha256}
        answer |= {"bytes": output.stat().st_size, "parameters": weights.card["parameters"]}
        if not as_json:
            print(f"{output}: {weights.card['parameters']:,} parameters, {answer['bytes']:,} bytes; {card}")


@app.command()
def evaluate(
    weights: Annotated[Path, typer.Argument(help="A safetensors file of weights.")],
    per_class: PerClass = 6,
    atomistic: Relaxed = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write each crystal's figures to this JSON file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge weights by their guesses of held-out crystals, without refinement."""
    with answering(as_json) as answer:
        if output is not None:
            require_writable(output)
        from bluesky_cdinn.training.evaluation import table
        from bluesky_cdinn.training.packaging import summary

        rows = _rows(weights, per_class, atomistic)
        if output is not None:
            # JSON knows no NaN, which the phase's error is where supports don't meet.
            output.write_text(json.dumps(plain(rows), allow_nan=False))
            answer["output"] = str(output)
        answer |= {"weights": str(weights), "figures": summary(rows)}
        if not as_json:
            print(table(rows))


@contextmanager
def _bar(shown: bool) -> Iterator[Any]:
    with progress_bars("training") if shown else nullcontext([lambda progress: None]) as (bar,):
        yield bar


def _rows(weights: Path, per_class: int, atomistic: Path | None) -> list[dict[str, Any]]:
    """Return each held-out crystal's figures, with a bar meanwhile."""
    from bluesky_cdinn.training.evaluation import score_start
    from bluesky_cdinn.training.held_out import CLASSES, COUNTS, atomistic_cases, procedural_cases
    from bluesky_cdinn.training.subjects import start_from

    start = start_from(weights)
    kinds = [procedural_cases(per_class)]
    if atomistic is not None:
        kinds.append(atomistic_cases(atomistic, per_class))
    total = per_class * len(CLASSES) * len(COUNTS) * len(kinds)
    rows = []
    with progress_bars(weights.name) as (bar,):
        for number, case in enumerate(itertools.chain(*kinds), start=1):
            rows += score_start(start, [case])
            bar(Progress(f"crystal {number} of {total}", number / total))
    return rows
