"""One model for everything that a beamline sets: TOML file, environment, keyword, each overriding the last.

The file is the one that ``CDINN_CONFIG`` names, else ``cdinn.toml`` in the working directory, else
``~/.config/cdinn/cdinn.toml``. In the environment a nested field is written ``CDINN_TILED__URI``.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, SecretStr, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bluesky_cdinn.errors import InvalidInput

Start = Literal["auto", "network", "autocorrelation", "random"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReconstructionOptions(_Section):
    """What a reconstruction depends on beside the data."""

    start: Start = Field(default="auto", description="Where phasing starts from; auto: the best there is.")
    weights: Path | None = Field(
        default=None, description="The network's weights, a safetensors file; None: those that ship."
    )
    refine: bool = Field(default=True, description="Refine the start; False returns the start itself.")
    imperfections: bool = Field(
        default=True,
        description="Look for partial coherence, a background, and frames and pixels that count more than "
        "others, and fit them.",
    )
    starts: int = Field(
        default=4, ge=1, le=64, description="Independent starts, computed in one batch and compared."
    )
    seed: int = Field(default=0, ge=0, description="The same seed on the same device gives the same result.")
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N."
    )
    threads: int = Field(default=1, ge=1, description="CPU threads; one is fastest on a busy machine.")
    max_shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="Part of a scan's volume to work on, around the peak; None: all above noise.",
    )


class TiledSettings(_Section):
    """Which Tiled server holds the raw and the processed runs."""

    uri: str | None = Field(
        default=None, description="A running server; None serves `directory` from this process."
    )
    profile: str | None = Field(default=None, description="A Tiled profile by name, instead of a URI.")
    api_key: SecretStr | None = Field(
        default=None, description="Give it in the environment, never in a file."
    )
    directory: Path = Field(
        default=Path(".cdinn/tiled"), description="Where the embedded server keeps its data."
    )
    raw: str = Field(default="raw", description="Container of the raw runs.")
    processed: str = Field(default="processed", description="Container of the reconstructions.")
    readable_storage: tuple[Path, ...] = Field(
        default=(), description="Folders whose detector files may be served."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_the_key_out_of_the_uri(cls, given: Any) -> Any:
        """Make ``uri?api_key=...``, as Tiled prints it, a URI that may be shown and a key that isn't."""
        if not (isinstance(given, Mapping) and isinstance(given.get("uri"), str)):
            return given
        uri, _, query = given["uri"].partition("?")
        key = parse_qs(query).get("api_key", [None])[0]
        return {**given, "uri": uri, "api_key": given.get("api_key") or key}


class WorkerSettings(_Section):
    """The child process that computes."""

    max_pending: int = Field(default=8, ge=1, description="Scans that may wait; more are refused, on record.")
    timeout_s: float = Field(
        default=600.0, gt=0, description="A reconstruction that takes longer is stopped."
    )
    attempts: int = Field(default=2, ge=1, description="How often a job is tried whose worker died.")


class LiveSettings(_Section):
    """Updates of the reconstruction while its scan runs."""

    updates: bool = Field(default=True, description="Look at scans while they run.")
    least_points: int = Field(default=8, ge=3, description="Points before the first look.")
    interval_s: float = Field(default=1.0, ge=0, description="The least time from one look to the next.")


class RemoteSettings(_Section):
    """Reconstruction by workers elsewhere: where documents go, and how workers share the scans."""

    publish: str = Field(
        default="tcp://127.0.0.1:5577",
        description="Where a session sends documents: the 0MQ proxy's in-address, or kafka://host:port/topic.",
    )
    follow: str = Field(
        default="tcp://127.0.0.1:5578",
        description="Where workers get them: the proxy's out-address, or kafka://host:port/topic.",
    )
    allow_network: bool = Field(
        default=False, description="Let addresses lead to other machines; the network must be your own."
    )
    kafka: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for Kafka's client; passwords by the environment."
    )
    paths: dict[str, str] = Field(
        default_factory=dict, description='Where a worker finds detector files: {"/ioc/data" = "/mnt/data"}.'
    )
    claims: str = Field(default="claims", description="Container in Tiled that says who does which scan.")
    workers: str = Field(default="workers", description="Container in Tiled with each worker's heartbeat.")
    heartbeat_s: float = Field(default=2.0, gt=0, description="Seconds between heartbeats.")
    silent_s: float = Field(
        default=30.0,
        gt=0,
        description="A worker whose heart is silent for so long, six heartbeats or more, has died.",
    )
    sweep_s: float = Field(
        default=10.0, gt=0, description="Seconds between looks at Tiled for scans that nobody has done."
    )
    look_back_s: float = Field(
        default=3600.0, ge=0, description="Scans that began so long before the worker are looked at too."
    )
    stop_s: float = Field(
        default=60.0, ge=0, description="A worker told to stop goes on so long with what it has begun."
    )
    metrics_port: int | None = Field(
        default=None, ge=0, le=65535, description="Serve Prometheus metrics there; None: don't; 0: any free."
    )
    metrics_host: str = Field(default="127.0.0.1", description="The metrics' address.")

    @model_validator(mode="after")
    def _silence_is_longer_than_a_few_beats(self) -> Self:
        if self.silent_s < 6 * self.heartbeat_s:
            raise ValueError(
                f"silent_s must be at least 6 times heartbeat_s, got {self.silent_s:g} and "
                f"{self.heartbeat_s:g}: raise silent_s, or have hearts beat more often"
            )
        return self


class SessionSettings(_Section):
    """A beamline's session, as `profile_collection/startup` makes it."""

    devices: Literal["simulated", "epics"] = Field(
        default="simulated", description="What the session measures with."
    )
    detector: str = Field(default="CDI:det:", description="Prefix of the areaDetector's records.")
    motor: str = Field(default="CDI:theta", description="Record of the rocking motor.")
    stages: dict[str, str] = Field(
        default_factory=dict, description='Records of the sample\'s motors, by name: {x = "34ID:x"}.'
    )
    write_path: str | None = Field(
        default=None,
        description="Folder in which the detector's IOC writes frames, such as /data/%Y/%m; None: frames "
        "travel in events.",
    )
    read_path: str | None = Field(
        default=None, description="The same folder as it is seen here, where that differs."
    )
    connect_s: float = Field(default=10.0, gt=0, description="How long records may take to be found.")
    metadata: Path = Field(
        default=Path(".cdinn/metadata.json"), description="What is said with every run, and the last scan_id."
    )


class Settings(BaseSettings):
    """Settings of the whole package.

    Parameters
    ----------
    cdi
        Geometry and sample metadata that neither the devices nor the start document say, under the
        names of the start document's ``cdi`` mapping.
    """

    model_config = SettingsConfigDict(
        env_prefix="CDINN_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    tiled: TiledSettings = TiledSettings()
    worker: WorkerSettings = WorkerSettings()
    reconstruction: ReconstructionOptions = ReconstructionOptions()
    live: LiveSettings = LiveSettings()
    remote: RemoteSettings = RemoteSettings()
    session: SessionSettings = SessionSettings()
    cdi: dict[str, Any] = Field(default_factory=dict)
    spool: Path = Field(default=Path(".cdinn/spool"), description="Results wait here while Tiled is away.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the TOML file under the environment and the environment under keywords."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_file())


def config_file() -> Path | None:
    """Return the settings file in force, or None where there is none.

    Raises
    ------
    InvalidInput
        ``CDINN_CONFIG`` names a file that isn't there: going on without would measure into another catalog.
    """
    named = os.environ.get("CDINN_CONFIG")
    if named and not Path(named).is_file():
        raise InvalidInput(f"CDINN_CONFIG must name a settings file, there is no {named}")
    usual = [Path("cdinn.toml"), Path("~/.config/cdinn/cdinn.toml").expanduser()]
    return next((path for path in ([Path(named)] if named else usual) if path.is_file()), None)
