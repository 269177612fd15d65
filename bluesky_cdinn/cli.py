"""The command line, ``cdinn``. Each command prints for people, or with ``--json`` one object for machines.

Exit codes: 0 done, 1 an error of this package (one line on stderr), 2 wrong usage. A command imports itself
what it alone needs: help and mistakes are answered at once, and torch is loaded only where it computes.
"""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bluesky_cdinn import (
    cli_backfill,
    cli_beamlines,
    cli_files,
    cli_ioc,
    cli_training,
    cli_view,
    cli_watch,
    cli_worker,
)
from bluesky_cdinn import cli_options as options
from bluesky_cdinn.cli_options import AsJson, Directory, choose, settings
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.files import require_writable
from bluesky_cdinn.summary import StoredStatus
from bluesky_cdinn.terminal import (
    answering,
    moment,
    number_table,
    print_table,
    progress_bars,
    report,
    table,
    told,
)

app = typer.Typer(
    name="cdinn",
    help="Live Bragg coherent diffraction imaging: rocking scan in, crystal shape and strain out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Where data, result and figure are kept.")] = Path(
        "demo_output"
    ),
    seed: Annotated[
        int, typer.Option(min=0, help="Of the crystal, the detector's faults and the photons.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Scan a simulated crystal, reconstruct it live, store it, find it again, compare it with the truth."""
    with answering(as_json) as answer:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"--directory must be a folder, or a place for one: {error}") from error
        from bluesky_cdinn.demo import demonstrate

        answer |= demonstrate(settings(directory), directory, seed, print)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="A recorded scan: HDF5, npz, TIFF, or a folder of TIFFs.")],
    delivery: options.Delivery = "event",
    time_scale: Annotated[
        float, typer.Option(min=0, help="Seconds for each recorded second; 0 goes as fast as it can.")
    ] = 0.0,
    shape: options.Shape = None,
    start: options.StartAt = None,
    weights: options.Weights = None,
    refine: options.Refine = None,
    starts: options.Starts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: options.Threads = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Run a recorded scan through RunEngine, live callback, worker and Tiled, as if it were measured now."""
    with answering(as_json) as answer:
        chosen = choose(settings(directory), max_shape=shape, start=start, weights=weights, refine=refine,
                        starts=starts, seed=seed, device=device, threads=threads)  # fmt: skip
        from bluesky_cdinn.replaying import replay_scan
        from bluesky_cdinn.sim.recording import load_recording

        recording = load_recording(file)
        with progress_bars("scan", "crystal") as (scan, crystal):
            summary = replay_scan(recording, chosen, delivery=delivery, time_scale=time_scale,
                                  on_point=scan, on_progress=crystal)  # fmt: skip
        report(summary, answer, as_json)


@app.command()
def reconstruct(
    run_uid: Annotated[str, typer.Argument(help="Of the raw run, or its first characters.")],
    shape: options.Shape = None,
    start: options.StartAt = None,
    weights: options.Weights = None,
    refine: options.Refine = None,
    starts: options.Starts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: options.Threads = None,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Reconstruct a stored scan again; makes another processed run beside those that there are."""
    with answering(as_json) as answer:
        chosen = choose(settings(directory), max_shape=shape, start=start, weights=weights, refine=refine,
                        starts=starts, seed=seed, device=device, threads=threads)  # fmt: skip
        from bluesky_cdinn.session import reconstruct_stored

        with progress_bars("crystal") as (crystal,):
            summary = reconstruct_stored(chosen, run_uid, crystal)
        report(summary, answer, as_json)


@app.command(name="list")
def list_reconstructions(
    raw: Annotated[str | None, typer.Option(help="Only of the scan with this uid.")] = None,
    sample: Annotated[str | None, typer.Option(help="Only of this sample.")] = None,
    status: Annotated[StoredStatus | None, typer.Option(help="Only those that ended so.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 20,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """List the stored reconstructions, newest first."""
    from bluesky_cdinn.catalog import connect

    with answering(as_json) as answer, connect(settings(directory)) as catalog:
        found = catalog.reconstructions(raw, sample=sample, status=status, limit=limit)
        answer |= {"count": len(found), "reconstructions": [told(summary) for summary in found]}
        if not as_json:
            rows = table("when", "uid", "scan", "sample", "status", "chi2", "confidence")
            for summary in found:
                numbers = (
                    (f"{summary.chi2:.5f}", f"{summary.confidence:.2f}") if summary.success else ("", "")
                )
                uids = summary.processed_uid[:8], summary.raw_uid[:8]
                rows.add_row(moment(summary.time), *uids, summary.sample, summary.status, *numbers)
            print_table(rows)


@app.command()
def phase(
    file: Annotated[Path, typer.Argument(help="npz (intensity, optionally mask: True where valid) or CXI.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The npz file to write.")],
    start: options.StartAt = None,
    weights: options.Weights = None,
    refine: options.Refine = None,
    starts: options.Starts = None,
    seed: options.Seed = None,
    device: options.Device = None,
    threads: options.Threads = None,
    as_json: AsJson = False,
) -> None:
    """Reconstruct a volume that is already assembled, with no Bluesky around it.

    The output holds density (complex64, on the input's own grid, so that its orthonormal FFT with zero
    frequency at n//2 compares with the input), support, and the numbers that --json prints.
    """
    with answering(as_json) as answer:
        require_writable(output)
        chosen = choose(settings(), start=start, weights=weights, refine=refine,
                        starts=starts, seed=seed, device=device, threads=threads)  # fmt: skip
        from bluesky_cdinn.documents import finite_scalars
        from bluesky_cdinn.volume_files import read_volume, write_reconstruction

        volume = read_volume(file)
        from bluesky_cdinn.pipeline import reconstruct as reconstruct_volume

        with progress_bars(file.name) as (progress,):
            result = reconstruct_volume(volume, chosen.reconstruction, progress=progress)
        write_reconstruction(output, result)
        answer |= {"output": str(output), "shape": result.density.shape, **finite_scalars(result)}
        answer["timings_s"] = dict(result.timings_s)
        if not as_json:
            print_table(number_table(result))


@app.command()
def serve(
    directory: Directory = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    as_json: AsJson = False,
) -> None:
    """Serve the embedded Tiled server until interrupted, for browsers and other programs."""
    from bluesky_cdinn.embedded import EmbeddedServer

    with answering(as_json) as answer:
        chosen = settings(directory).tiled
        if chosen.uri or chosen.profile:
            named = chosen.uri or chosen.profile
            raise InvalidInput(
                f"a directory is served, the settings name the server {named}: give --directory"
            )
        server = EmbeddedServer(chosen.directory, chosen.readable_storage, port)
        address = server.address()
        mine = server.pid is not None
        answer |= {"uri": address.uri, "directory": str(server.directory), "served_here": mine}
        if not as_json:  # a browser takes the key from the address once, and keeps it
            print(f"{server.directory} is served at {address.uri}?api_key={address.api_key}", flush=True)
    if not mine:
        print("another process serves it already; there is nothing to do here", file=sys.stderr)
        return
    print("Ctrl-C stops it", file=sys.stderr)
    try:
        while server.pid is not None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        server.close()
        return
    print(f"cdinn: the server ended by itself; its log is {server.log}", file=sys.stderr)
    raise typer.Exit(1)


@app.command()
def doctor(directory: Directory = None, as_json: AsJson = False) -> None:
    """Check the installation: packages, settings, spool, Tiled, worker and device."""
    from bluesky_cdinn.doctor import examine

    checks = []
    with answering(as_json) as answer:
        for check in examine(settings(directory)):
            checks.append(check)
            mark = "good " if check.good else "WRONG"
            print(f"{mark}  {check.name}: {check.finding} ({check.seconds:.1f} s)", flush=True)
        answer |= {"ok": all(check.good for check in checks), "checks": [vars(check) for check in checks]}
    if not all(check.good for check in checks):
        raise typer.Exit(1)


app.add_typer(cli_training.app)
app.add_typer(cli_backfill.app)
app.add_typer(cli_worker.app)
app.add_typer(cli_ioc.app)
app.add_typer(cli_watch.app)
app.add_typer(cli_view.app)
app.add_typer(cli_files.app)
app.add_typer(cli_beamlines.app)

if __name__ == "__main__":
    app()
