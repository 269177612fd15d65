"""The commands that exchange files with other programs: export and import."""

import json
import tomllib
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import typer

from bluesky_cdinn.cli_options import AsJson, Directory, settings
from bluesky_cdinn.errors import InvalidInput, NotFound
from bluesky_cdinn.export import Format, export, export_volume, format_of
from bluesky_cdinn.files import require_writable
from bluesky_cdinn.records import DiffractionVolume, Reconstruction
from bluesky_cdinn.terminal import answering, print_table, table

app = typer.Typer()

Frame = Literal["lab", "q"]
_TIFF = (".tif", ".tiff")


@app.command(name="export")
def export_run(
    uid: Annotated[
        str, typer.Argument(help="Of a reconstruction, or its first characters; or of a scan: its volume.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    format: Annotated[
        Format | None, typer.Option("--format", help="What the file's suffix says by default.")
    ] = None,
    volume: Annotated[
        bool, typer.Option("--volume", help="Put the measured volume in too (cxi, nexus, npz).")
    ] = False,
    voxel: Annotated[
        float | None, typer.Option(help="Edge of a cubic voxel, nm (nexus, vti); the shortest by default.")
    ] = None,
    frame: Annotated[Frame, typer.Option(help="Along the lab's axes, or with Q along z.")] = "lab",
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Write a stored reconstruction into a file that other programs open."""
    with answering(as_json) as answer:
        chosen = format_of(output, format)
        require_writable(output)
        from bluesky_cdinn.catalog import connect

        with connect(settings(directory)) as catalog:
            try:
                result = catalog.load(uid)
            except NotFound:
                measured, metadata, raw_uid = _volume(catalog, uid, None)
                export_volume(output, measured, chosen, raw_uid=raw_uid, metadata=metadata)
                shape = measured.intensity.shape
            else:
                measured = _volume(catalog, result.raw_uid, result)[0] if volume else None
                export(
                    output,
                    result,
                    chosen,
                    volume=measured,
                    processed_uid=_whole_uid(catalog, uid),
                    voxel_nm=voxel,
                    axes=_axes(frame, result),
                )
                shape = result.density.shape
        answer |= {"output": str(output), "format": chosen, "shape": shape}
        answer |= {"bytes": output.stat().st_size}
        if not as_json:
            print(f"{output}: {chosen}, {' x '.join(map(str, shape))}, {answer['bytes']:,} bytes")


@app.command(name="import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="HDF5, NeXus, CXI or npz, a scan each; or the TIFF files, or the folder, of one."
        ),
    ],
    scan: Annotated[str | None, typer.Option(help="Number or name of the scan in the file.")] = None,
    spec: Annotated[Path | None, typer.Option(help="SPEC file that says the angles of TIFF files.")] = None,
    frames: Annotated[str | None, typer.Option(help="Dataset with the frames.")] = None,
    angles: Annotated[str | None, typer.Option(help="Dataset or SPEC column with the rocking angle.")] = None,
    count_time: Annotated[str | None, typer.Option(help="Dataset or column with the exposure, s.")] = None,
    monitor: Annotated[str | None, typer.Option(help="Dataset or column with the incident flux.")] = None,
    said: Annotated[
        list[str] | None, typer.Option("--set", help="An entry of cdi, NAME=VALUE; VALUE in JSON.")
    ] = None,
    cdi: Annotated[Path | None, typer.Option(help="TOML file with entries of cdi.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Even if the same content is there.")] = False,
    directory: Directory = None,
    as_json: AsJson = False,
) -> None:
    """Bring rocking scans of an archive into Tiled, as raw runs that can be reconstructed."""
    with answering(as_json) as answer:
        entries = _entries(said or [], cdi)
        names = {"scan": scan, "angles": angles, "count_time": count_time, "monitor": monitor}
        from bluesky_cdinn.archive import import_scan
        from bluesky_cdinn.catalog import connect

        runs = []
        scans = list(_scans(files, spec, entries, frames, names))
        with connect(settings(directory)) as catalog:
            for archived in scans:
                done = import_scan(catalog, archived, again=again)
                points, rows, columns = archived.frames.shape
                runs.append({"file": str(archived.files[0]), "uid": done.uid, "new": done.new,
                             "points": points, "shape": (rows, columns)})  # fmt: skip
            stored = catalog.flush()
        answer |= {"runs": runs, "stored": stored}
        if not as_json:
            rows_ = table("file", "scan", "points", "")
            for run in runs:
                state = "imported" if run["new"] else "was there already; --again imports it once more"
                rows_.add_row(Path(run["file"]).name, run["uid"], str(run["points"]), state)
            print_table(rows_)
            if not stored:
                print("Tiled doesn't take them now: they wait in the spool")


def _volume(
    catalog: Any, raw_uid: str, result: Reconstruction | None
) -> tuple[DiffractionVolume, dict[str, Any], str]:
    """Return a scan's volume, as the reconstruction saw it, what its start document said, and its uid."""
    from bluesky_cdinn.callbacks import stored_curve
    from bluesky_cdinn.pipeline import measured_volume
    from bluesky_cdinn.settings import ReconstructionOptions
    from bluesky_cdinn.volume import load_frames

    options = catalog.settings.reconstruction
    if result is not None:
        known = {k: v for k, v in result.parameters.items() if k == "max_shape"}
        options = ReconstructionOptions.model_validate(known)
    curve = load_frames(stored_curve(catalog, raw_uid))
    return measured_volume(curve, options), dict(curve.metadata), curve.raw_uid


def _whole_uid(catalog: Any, uid: str) -> str:
    """Return a processed run's uid from its first characters."""
    try:
        return catalog.processed[uid].metadata["start"]["uid"]
    except (KeyError, ValueError):
        return uid


def _axes(frame: Frame, result: Reconstruction) -> Any:
    if frame == "lab":
        return None
    if result.q_vector is None:
        raise InvalidInput("a frame along Q needs the Bragg vector, and the reconstruction is in voxel units")
    from bluesky_cdinn.crystal_frame import axes_along_q

    return axes_along_q(result.q_vector)


def _entries(said: list[str], file: Path | None) -> dict[str, Any]:
    """Return the entries of cdi that the command line gives."""
    entries: dict[str, Any] = {}
    if file is not None:
        try:
            entries |= tomllib.loads(file.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidInput(f"--cdi must be a TOML file, {file} can't be read: {error}") from error
    for item in said:
        name, found, value = item.partition("=")
        if not found or not name:
            raise InvalidInput(f"--set must be NAME=VALUE, got {item!r}")
        try:
            entries[name] = json.loads(value)
        except ValueError:
            entries[name] = value
    return entries


def _scans(
    files: list[Path], spec: Path | None, cdi: dict[str, Any], frames: str | None, names: dict[str, Any]
) -> Any:
    """Yield the scans that files hold; TIFF files together are one."""
    if absent := [str(path) for path in files if not path.exists()]:
        raise InvalidInput(f"files to import must exist, there is no {', '.join(absent)}")
    if spec is not None:
        if frames:
            raise InvalidInput("--frames names a dataset of HDF5; with --spec the frames are the TIFF files")
        from bluesky_cdinn.archive_spec import read_spec

        every = [path for given in files for path in (given.iterdir() if given.is_dir() else [given])]
        yield read_spec(spec, [path for path in every if path.suffix.lower() in _TIFF], cdi, **names)
        return
    for path in files:
        yield _scan(path, cdi, frames, names)


def _scan(path: Path, cdi: dict[str, Any], frames: str | None, names: dict[str, Any]) -> Any:
    from bluesky_cdinn.archive import read_archived_volume, read_recorded
    from bluesky_cdinn.archive_hdf5 import read_hdf5

    asked = {name: value for name, value in {"frames": frames, **names}.items() if value}
    if path.is_file() and h5py.is_hdf5(path):
        ours, volume = _what_hdf5_holds(path)
        if asked or not (ours or volume):
            return read_hdf5(path, cdi, frames=frames, **names)
        return read_archived_volume(path, cdi) if volume else read_recorded(path, cdi)
    if asked:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in asked)
        raise InvalidInput(
            f"{options} can only be said of HDF5 and, with --spec, TIFF files; {path} is neither"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as arrays:
            if "intensity.npy" in arrays.namelist():
                return read_archived_volume(path, cdi)
    return read_recorded(path, cdi)


def _what_hdf5_holds(path: Path) -> tuple[bool, bool]:
    """Return whether it is a recording of ours, and whether it is CXI."""
    try:
        with h5py.File(path) as file:
            return "frames" in file and ("angles_deg" in file or "theta_deg" in file), "cxi_version" in file
    except OSError as error:
        raise InvalidInput(f"{path} can't be read as HDF5: {error}") from error
