"""The command line, ``cdinn``. Each command prints for people, or with ``--json`` one object for machines.

Exit codes: 0 done, 1 an error of this package (one line on stderr), 2 wrong usage.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from bluesky_cdinn.documents import finite_scalars
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import require_writable
from bluesky_cdinn.report import number_rows
from bluesky_cdinn.settings import ReconstructionOptions, Settings, Start
from bluesky_cdinn.terminal import answering, print_table, progress_bar, table
from bluesky_cdinn.volume_files import read_volume, write_reconstruction

app = typer.Typer(
    name="cdinn",
    help="Live Bragg coherent diffraction imaging: rocking scan in, crystal shape and strain out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the only line of stdout.")]
StartOption = Annotated[Start | None, typer.Option("--start", help="Where phasing starts from.")]
Refine = Annotated[bool | None, typer.Option("--refine/--no-refine", help="Refine the start, or stop there.")]
Starts = Annotated[int | None, typer.Option(min=1, max=64, help="Independent starts, compared at the end.")]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same result.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
Shape = Annotated[
    tuple[int, int, int] | None,
    typer.Option("--shape", metavar="N N N", help="Largest part of the volume to work on, around the peak."),
]


@app.command()
def phase(
    file: Annotated[Path, typer.Argument(help="npz (intensity, optionally mask: True where valid) or CXI.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The npz file to write.")],
    start: StartOption = None,
    refine: Refine = None,
    starts: Starts = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Reconstruct a volume that is already assembled, with no Bluesky around it.

    The output holds density (complex64, on the input's own grid, so that its orthonormal FFT with zero
    frequency at n//2 compares with the input), support, and the numbers that --json prints.
    """
    with answering(as_json) as answer:
        require_writable(output)
        options = choose(settings().reconstruction, start=start, refine=refine, starts=starts, seed=seed,
                         device=device, threads=threads)  # fmt: skip
        volume = read_volume(file)
        from bluesky_cdinn.pipeline import reconstruct  # torch: only where something is computed

        with progress_bar(file.name) as progress:
            result = reconstruct(volume, options, progress=progress)
        write_reconstruction(output, result)
        answer |= {"output": str(output), "shape": result.density.shape}
        answer |= {**finite_scalars(result), "timings_s": dict(result.timings_s)}
        if not as_json:
            rows = table(str(output), "")
            for heading, value in number_rows(finite_scalars(result)):
                rows.add_row(heading, value)
            for stage, seconds in result.timings_s.items():
                rows.add_row(f"  {stage}", f"{seconds:.2f} s")
            print_table(rows)


def settings() -> Settings:
    """Return the settings in force.

    Raises
    ------
    InvalidInput
        The file or the environment holds what the settings don't allow.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidInput(f"the settings are wrong: {_faults(error)}") from error


def choose(options: ReconstructionOptions, **given: Any) -> ReconstructionOptions:
    """Return options with those replaced that the command line gave."""
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return ReconstructionOptions.model_validate(options.model_dump() | chosen)
    except ValidationError as error:
        raise InvalidInput(f"the options are wrong: {_faults(error)}") from error


def _faults(error: ValidationError) -> str:
    # Without the values: one of them may be the server's key.
    faults = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)


if __name__ == "__main__":
    app()
