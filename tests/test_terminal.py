"""What every command shares: answers, errors, progress."""

import json
import math

import pytest
import typer

from bluesky_cdinn.errors import NotFound
from bluesky_cdinn.records import Progress
from bluesky_cdinn.report import number_rows
from bluesky_cdinn.terminal import answering, progress_bars


def test_json_is_the_only_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(True) as answer:
        print("chatter of some library")
        answer |= {"chi2": 0.01, "confidence": math.nan, "shape": (1, 2, 3)}
    out, err = capsys.readouterr()
    assert json.loads(out) == {"chi2": 0.01, "shape": [1, 2, 3]}
    assert out.count("\n") == 1
    assert "chatter" in err


def test_people_get_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(False) as answer:
        print("a table")
        answer["chi2"] = 0.01
    assert capsys.readouterr().out == "a table\n"


@pytest.mark.parametrize("as_json", [True, False])
def test_an_error_is_one_line_and_exit_code_1(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, answering(as_json):
        raise NotFound("no run 'abc':\n  there are none")
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert err == "cdinn: no run 'abc': there are none\n"
    expected = {"error": "no run 'abc': there are none", "type": "NotFound"}
    assert (json.loads(out) if as_json else out) == (expected if as_json else "")


def test_other_errors_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), answering(True):
        raise ZeroDivisionError
    assert capsys.readouterr().out == ""


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars("scan 7", "crystal") as (scan, crystal):
        scan(Progress("scanned", 1.0))
        crystal(Progress("prepare", 0.1))
        crystal(Progress("polish", 0.9, 0.0042))
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("scan 7", "crystal", "polish", "100%", "90%", "0.0042"):
        assert word in err


def test_numbers_are_shown_where_known() -> None:
    rows = dict(number_rows({"chi2": 0.00421, "confidence": 0.97, "size_nm": math.nan, "unheard_of": 3.0}))
    assert rows == {"chi2": "0.00421", "confidence": "97 %"}
