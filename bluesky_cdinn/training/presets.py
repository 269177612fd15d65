"""What to train, on what, and how: TOML files, those that ship or a beamline's own.

A file has the sections of `SECTIONS`, each with the fields of its dataclass, all optional; ``extends`` names
the preset that it changes, or the file, beside it. A misspelt key is an error, not a default.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.network import NetworkConfig
from bluesky_cdinn.training.atomistic_source import Views
from bluesky_cdinn.training.measuring import Conditions
from bluesky_cdinn.training.mixture import Mixture
from bluesky_cdinn.training.options import TrainingOptions
from bluesky_cdinn.training.procedural import Recipe

# Presets may be made of presets; a circle is a mistake.
DEEPEST = 4


@dataclass(frozen=True)
class Data:
    """What batches are made of.

    Parameters
    ----------
    batch
        Measurements of each step and process.
    measurements
        Of each crystal, under conditions of its own.
    share
        Part of the crystals that comes from the stored set of relaxed ones.
    atomistic
        That set, a folder or file; None for procedural crystals only.
    larger
        Grids beside the network's own, each with the share of batches on it.
    """

    batch: int = 16
    measurements: int = 2
    share: float = 0.3
    atomistic: Path | None = None
    larger: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.measurements <= self.batch:
            raise InvalidInput(
                f"a batch must hold each crystal's {self.measurements} measurements, it has {self.batch}"
            )
        if not 0 <= self.share <= 1:
            raise InvalidInput(f"share must be 0 to 1, got {self.share}")
        if any(side < 16 or side % 8 for side, _ in self.larger):
            raise InvalidInput(
                f"larger grids must be multiples of 8, got {[side for side, _ in self.larger]}"
            )
        shares = [share for _, share in self.larger]
        if any(share < 0 for share in shares) or sum(shares) > 1:
            raise InvalidInput(f"shares of larger grids must add up to 1 or less, got {shares}")


@dataclass(frozen=True)
class Preset:
    """A training run, in full.

    Parameters
    ----------
    name
        It goes by.
    network, data, crystals, views, conditions, training
        The sections of its file.
    """

    name: str
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: Data = field(default_factory=Data)
    crystals: Recipe = field(default_factory=Recipe)
    views: Views = field(default_factory=Views)
    conditions: Conditions = field(default_factory=Conditions)
    training: TrainingOptions = field(default_factory=lambda: TrainingOptions(hours=1.0))

    def source(self) -> Mixture:
        """Return what makes its batches.

        Raises
        ------
        InvalidInput
            The set of relaxed crystals isn't there.
        """
        data = self.data
        if data.atomistic is not None and not data.atomistic.exists():
            raise InvalidInput(f"a set of relaxed crystals is required, there is none at {data.atomistic}")
        return Mixture(
            side=self.network.side,
            count=data.batch,
            recipe=self.crystals,
            conditions=self.conditions,
            measurements=data.measurements,
            atomistic=data.atomistic,
            share=data.share,
            views=self.views,
            larger=data.larger,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON's own types; `preset_from` takes it back."""
        whole = asdict(self)
        if self.data.atomistic is not None:
            whole["data"]["atomistic"] = str(self.data.atomistic)
        return whole


SECTIONS: dict[str, type] = {
    "network": NetworkConfig,
    "data": Data,
    "crystals": Recipe,
    "views": Views,
    "conditions": Conditions,
    "training": TrainingOptions,
}


def load_preset(name: str) -> Preset:
    """Return a preset by its name, or from a TOML file by its path.

    Raises
    ------
    InvalidInput
        There is none, or it doesn't say what can be trained.
    """
    return preset_from(_read(name, DEEPEST), Path(name).stem)


def preset_names() -> list[str]:
    """Return the names of the presets that ship."""
    return sorted(
        file.name.removesuffix(".toml") for file in _shipped().iterdir() if file.name.endswith(".toml")
    )


def preset_from(content: Mapping[str, Any], name: str) -> Preset:
    """Return the preset that a file's or a run's content says, under its own name if it has one.

    Raises
    ------
    InvalidInput
        It says what there is not.
    """
    unknown = content.keys() - SECTIONS.keys() - {"name"}
    if unknown:
        raise InvalidInput(f"preset {name} has {_listed(unknown)}: its sections are {_listed(SECTIONS)}")
    name = str(content.get("name", name))
    made = {key: _section(name, key, kind, content.get(key, {})) for key, kind in SECTIONS.items()}
    return Preset(name, **made)


def _section(preset: str, key: str, kind: type, values: Mapping[str, Any]) -> Any:
    place = f"[{key}] of preset {preset}"
    if not isinstance(values, Mapping):
        raise InvalidInput(f"{place} must be a table, it is {values!r}")
    known = {item.name for item in fields(kind)}
    if values.keys() - known:
        raise InvalidInput(f"{place} has {_listed(values.keys() - known)}: it may have {_listed(known)}")
    if kind is TrainingOptions and not {"steps", "hours"} & values.keys():
        values = {"hours": 1.0, **values}
    try:
        section = TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        # What a section says of itself as a whole has no place in it.
        faults = [
            ": ".join([*([".".join(map(str, e["loc"]))] if e["loc"] else []), e["msg"]])
            for e in error.errors(include_url=False)
        ]
        raise InvalidInput(f"{place} is wrong: {'; '.join(faults)}") from error
    if kind in (Recipe, Views, Conditions):
        _check_ranges(place, section)
    if isinstance(section, Recipe | Views) and section.oversampling[0] < 2:
        # The network's object fills half of each axis.
        raise InvalidInput(f"oversampling in {place} must be 2 or more, it is {list(section.oversampling)}")
    return section


def _check_ranges(place: str, section: Any) -> None:
    """Refuse ranges that run backwards, and numbers that are no probabilities."""
    for item in fields(section):
        value = getattr(section, item.name)
        if isinstance(value, float) and not 0 <= value <= 1:
            raise InvalidInput(f"{item.name} in {place} must be a probability, 0 to 1, it is {value}")
        if isinstance(value, tuple) and isinstance(value[0], float) and not 0 < value[0] <= value[1]:
            raise InvalidInput(f"{item.name} in {place} must rise from above 0, it is {list(value)}")


def _read(name: str, depth: int) -> dict[str, Any]:
    """Return a file's content, over that of what it extends."""
    if not depth:
        raise InvalidInput(f"presets may extend each other {DEEPEST - 1} times, {name} would be one more")
    path = Path(name)
    file: Traversable = path if path.suffix == ".toml" else _shipped() / f"{name}.toml"
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} must be TOML: {error}") from error
    except OSError as error:
        raise InvalidInput(
            f"a preset must be {_listed(preset_names())} or a TOML file, got {name}: {error}"
        ) from error
    merged: dict[str, Any] = {}
    if "extends" in content:
        other = str(content.pop("extends"))
        # A file is looked for beside the one that names it.
        merged = _read(str(path.parent / other) if other.endswith(".toml") else other, depth - 1)
    for key, values in content.items():
        both = isinstance(values, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], values) if both else values
    return merged


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return a section over another; a budget in either unit replaces the other's."""
    budget = {"steps", "hours"}
    if budget & values.keys():
        base = {key: value for key, value in base.items() if key not in budget}
    return base | values


def _shipped() -> Traversable:
    return resources.files("bluesky_cdinn") / "data" / "presets"


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def changed(preset: Preset, **sections: Mapping[str, Any]) -> Preset:
    """Return a preset with some fields of some sections replaced; None leaves one as it is.

    Raises
    ------
    InvalidInput
        A value isn't allowed.
    """
    content = preset.as_dict()
    for key, values in sections.items():
        given = {name: value for name, value in values.items() if value is not None}
        content[key] = {k: v for k, v in _merged(content[key], given).items() if v is not None}
    return preset_from(content, preset.name)
