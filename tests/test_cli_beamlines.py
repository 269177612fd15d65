import json

import pytest
from typer.testing import CliRunner

from bluesky_cdinn.cli import app
from bluesky_cdinn.cli_beamlines import direction
from bluesky_cdinn.goniometer import beamline_names


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["beamlines", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_every_beamline_is_listed_with_its_circles():
    told = run().stdout
    for name in beamline_names():
        assert name in told
    assert "theta y+" in told


def test_one_is_told_with_its_sources():
    told = " ".join(run("id01").stdout.split())
    assert "ESRF ID01" in told
    assert "cdiutils" in told
    assert "0 deg unless said" in told


def test_machines_get_all_of_it():
    told = json.loads(run("--json").stdout)
    assert tuple(told) == beamline_names()
    assert told["p10"]["sample"][2]["offset_deg"] == -90
    assert json.loads(run("p10", "--json").stdout) == told["p10"]


def test_a_file_of_one_s_own_is_checked(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "Mine"\n[[sample]]\nname = "omega"\naxis = [0, 3, 4]\n')
    assert "(0.0000, 0.6000, 0.8000)" in run(str(path)).stdout
    path.write_text('title = "Mine"\n')
    assert "sample: Field required" in run(str(path), code=1).stderr


@pytest.mark.parametrize(("vector", "named"), [((0, -1, 0), "y-"), ((1.0, 0.0, 0.0), "x+")])
def test_directions_have_names(vector, named):
    assert direction(vector) == named
