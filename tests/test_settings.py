"""Settings: which source wins, and what is refused."""

import pytest
from pydantic import SecretStr, ValidationError

from bluesky_cdinn.backfill_dask import portable
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.settings import ReconstructionOptions, RemoteSettings, Settings, config_file


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No settings file in the way, in the working directory or at home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDINN_CONFIG", raising=False)
    return tmp_path


def test_defaults_need_no_file():
    assert config_file() is None
    assert Settings().tiled.uri is None


def test_keyword_wins_over_environment_over_file_over_default(nowhere, monkeypatch):
    (nowhere / "cdinn.toml").write_text('spool = "from-file"\n[reconstruction]\nseed = 3\nstarts = 2\n')
    assert Settings().reconstruction.seed == 3
    monkeypatch.setenv("CDINN_RECONSTRUCTION__SEED", "4")
    assert Settings().reconstruction.seed == 4
    # the file's other entries of the same section stay
    assert Settings().reconstruction.starts == 2
    assert Settings(reconstruction=ReconstructionOptions(seed=5)).reconstruction.seed == 5
    assert str(Settings().spool) == "from-file"


def test_a_named_file_is_the_only_one_read(nowhere, monkeypatch):
    (nowhere / "cdinn.toml").write_text('spool = "here"\n')
    (nowhere / "other.toml").write_text("[worker]\nmax_pending = 2\n")
    monkeypatch.setenv("CDINN_CONFIG", str(nowhere / "other.toml"))
    assert Settings().worker.max_pending == 2
    assert str(Settings().spool) != "here"


def test_a_named_file_that_is_absent_is_refused(nowhere, monkeypatch):
    monkeypatch.setenv("CDINN_CONFIG", str(nowhere / "absent.toml"))
    with pytest.raises(InvalidInput, match=r"absent\.toml"):
        Settings()


@pytest.mark.parametrize(
    "text", ["[tild]\nuri = 'x'\n", "[tiled]\nurl = 'x'\n", "[worker]\nmax_pending = 0\n"]
)
def test_what_no_setting_is_called_or_may_be_is_refused(nowhere, text):
    (nowhere / "cdinn.toml").write_text(text)
    with pytest.raises(ValidationError):
        Settings()


def test_a_worker_may_miss_a_few_heartbeats():
    with pytest.raises(ValidationError, match="6 times heartbeat_s, got 30 and 16"):
        RemoteSettings(heartbeat_s=16, silent_s=30)


@pytest.mark.parametrize(
    "wrong", [{"device": "banana"}, {"max_shape": (0, 1, 1)}, {"starts": 0}, {"seed": -1}]
)
def test_options_that_can_not_be_are_refused(wrong):
    with pytest.raises(ValidationError):
        ReconstructionOptions(**wrong)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_devices_by_name(device):
    assert ReconstructionOptions(device=device).device == device


def test_the_key_is_never_shown(monkeypatch):
    monkeypatch.setenv("CDINN_TILED__API_KEY", "secret")
    settings = Settings()
    assert "secret" not in repr(settings)
    assert settings.tiled.api_key is not None
    assert settings.tiled.api_key.get_secret_value() == "secret"


def test_a_key_in_the_uri_is_taken_out_of_it(monkeypatch):
    monkeypatch.setenv("CDINN_TILED__URI", "http://tiled:8000/api/v1?api_key=secret")
    settings = Settings()
    assert settings.tiled.uri == "http://tiled:8000/api/v1"
    assert "secret" not in repr(settings) + repr(Catalog(settings)) + portable(settings)
    assert settings.tiled.api_key is not None
    assert settings.tiled.api_key.get_secret_value() == "secret"
    monkeypatch.setenv("CDINN_TILED__API_KEY", "another")
    assert Settings().tiled.api_key == SecretStr("another")
