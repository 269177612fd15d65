"""A beamline's goniometer and detector as data: a TOML file, and the directions that follow from its angles.

The lab frame is that of `bluesky_cdinn.records.Geometry`: z along the beam, y up, x completing a
right-handed frame. Circles are listed from the outermost, which stands on the floor and carries the others,
to the innermost. Files that ship lie in ``data/beamlines``; any other is named by its path.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from bluesky_cdinn.errors import InvalidInput
from bluesky_cdinn.records import Geometry, Vector

FloatArray = NDArray[np.float64]

PRESETS = Path(__file__).parent / "data" / "beamlines"

# What a beamline's file may say of the cdi metadata: what doesn't follow from the circles or from the scan.
FIXED = {f.name for f in fields(Geometry)} | {"circles_deg"}
FIXED -= {"detector_angles_deg", "detector_axes", "rocking_axis", "scanned"}

_UNIT = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def rotation(axis: ArrayLike, angle_deg: ArrayLike) -> FloatArray:
    """Return the right-handed rotation about an axis (3,) by angles (...), float64 (..., 3, 3).

    Rodrigues' formula.
    """
    x, y, z = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(np.asarray(angle_deg, dtype=float))[..., None, None]
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def is_called(key: str, name: str) -> bool:
    """Whether a key is a name, or ends with it after a separator."""
    return key == name or (key.endswith(name) and key[-len(name) - 1] in "_-.:")


def _direction(given: Any) -> Vector:
    """Read ``"y-"``, or three numbers, as a unit vector."""
    if isinstance(given, str):
        if len(given) != 2 or given[0] not in _UNIT or given[1] not in "+-":
            raise ValueError('a direction must be one of "x+", "x-", "y+", ..., "z-", or three numbers')
        sign = 1.0 if given[1] == "+" else -1.0
        x, y, z = (sign * value + 0.0 for value in _UNIT[given[0]])
        return x, y, z
    vector = np.asarray(given)
    if vector.shape != (3,) or vector.dtype.kind not in "if" or not vector.any():
        raise ValueError('a direction must be "x+" and the like, or three numbers that are not all zero')
    x, y, z = (vector / np.linalg.norm(vector)).tolist()
    return x, y, z


Direction = Annotated[Vector, BeforeValidator(_direction)]
Angle = Annotated[float, Field(ge=-360, le=360)]


class _Described(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Circle(_Described):
    """One circle of a goniometer or of a detector arm."""

    name: str = Field(min_length=1, description="As the beamline calls it.")
    axis: Direction = Field(
        description="Direction about which a rising angle turns, right-handed, with all circles at zero: "
        '"y+" and the like, or three numbers.'
    )
    motors: tuple[str, ...] = Field(default=(), description="Other names that its motor has in documents.")
    offset_deg: Angle = Field(default=0.0, description="Added to what the motor reads.")
    default_deg: Angle | None = Field(
        default=None, description="What it reads where nobody says; without it somebody must."
    )

    def is_moved_by(self, motor: str) -> bool:
        """Whether a motor, a device or a data key by its name, is this circle's."""
        return any(is_called(motor, name) for name in (self.name, *self.motors))


class Mount(_Described):
    """How the detector sits on its arm, seen with all circles of the arm at zero."""

    rows: Direction = Field(default=(0.0, -1.0, 0.0), description="Where the row number rises.")
    columns: Direction = Field(default=(1.0, 0.0, 0.0), description="Where the column number rises.")
    arm: Direction = Field(default=(0.0, 0.0, 1.0), description="From the sample to the detector.")
    roll_deg: Angle = Field(default=0.0, description="The detector turned about the arm, right-handed.")
    tilt_deg: tuple[Angle, Angle] = Field(
        default=(0.0, 0.0),
        description="Then turned about its rows' and its columns' direction, so that it faces the sample "
        "askew; the arm stays.",
    )

    @model_validator(mode="after")
    def _is_square(self) -> "Mount":
        frame = np.array([self.rows, self.columns, self.arm])
        if not np.allclose(frame @ frame.T, np.eye(3), atol=1e-6):
            raise ValueError(
                f"rows {self.rows}, columns {self.columns} and arm {self.arm} must be at right angles; "
                "give small misalignments as roll_deg and tilt_deg"
            )
        return self

    def axes(self) -> FloatArray:
        """Return rows, columns and arm at zero as the rows of a float64 (3, 3)."""
        rows, columns, arm = np.array([self.rows, self.columns, self.arm])
        roll = rotation(arm, self.roll_deg)
        rows, columns = roll @ rows, roll @ columns
        tilt = rotation(rows, self.tilt_deg[0]) @ rotation(columns, self.tilt_deg[1])
        return np.array([tilt @ rows, tilt @ columns, arm])


class Beamline(_Described):
    """What the geometry of a beamline's measurements follows from, beside the angles."""

    title: str = Field(min_length=1, description="For people.")
    sources: tuple[str, ...] = Field(default=(), description="Where the conventions are stated.")
    assumed: str = Field(default="", description="What the sources don't say, or don't agree on.")
    sample: tuple[Circle, ...] = Field(min_length=1, description="The sample's circles, outermost first.")
    arm: tuple[Circle, ...] = Field(
        default=(),
        description="The detector's circles, outermost first; one that carries sample and detector is in "
        "both lists, under one name.",
    )
    detector: Mount = Field(default=Mount(), description="How the detector sits on its arm.")
    cdi: dict[str, Any] = Field(
        default_factory=dict,
        description="Quantities and circles_deg of the cdi metadata where nobody says otherwise.",
    )

    @field_validator("cdi")
    @classmethod
    def _is_read(cls, cdi: dict[str, Any]) -> dict[str, Any]:
        if unread := sorted(cdi.keys() - FIXED):
            raise ValueError(f"what is always so must be among {', '.join(sorted(FIXED))}, got {unread}")
        return cdi

    @model_validator(mode="after")
    def _every_circle_has_a_name_of_its_own(self) -> "Beamline":
        for stack in (self.sample, self.arm):
            names = [name for circle in stack for name in (circle.name, *circle.motors)]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"every circle and motor of a stack must be named once, got {twice} twice")
        return self

    @property
    def circles(self) -> tuple[Circle, ...]:
        """The sample's circles, then the detector's; one that carries both comes once."""
        names = {circle.name for circle in self.sample}
        return (*self.sample, *(circle for circle in self.arm if circle.name not in names))

    def rocked_by(self, motor: str) -> Circle | None:
        """Return the sample's circle that a motor turns, None if it turns none."""
        return next((circle for circle in self.sample if circle.is_moved_by(motor)), None)

    def needed(self, rocked: Circle | None) -> tuple[Circle, ...]:
        """Return the circles whose angles decide: those that carry the rocked one, and the detector's."""
        outside = () if rocked is None else self.sample[: self.sample.index(rocked)]
        return tuple({circle.name: circle for circle in (*outside, *self.arm)}.values())

    def rocking_axis(self, rocked: Circle, angles_deg: Mapping[str, float]) -> Vector:
        """Return the axis of a circle in the lab, turned by the circles that carry it.

        Parameters
        ----------
        rocked
            One of the sample's circles.
        angles_deg
            What the motors read, by circle.
        """
        outer = self.sample[: self.sample.index(rocked)]
        return _plain(_turned(outer, angles_deg) @ np.array(rocked.axis))

    def detector_axes(self, angles_deg: Mapping[str, float]) -> tuple[Vector, Vector, Vector]:
        """Return where in the lab rows rise, columns rise and the arm points; see `rocking_axis`."""
        rows, columns, arm = self.detector.axes() @ _turned(self.arm, angles_deg).T
        return _plain(rows), _plain(columns), _plain(arm)


def _turned(circles: Sequence[Circle], angles_deg: Mapping[str, float]) -> FloatArray:
    """Return the rotation of what sits on the last of some circles: each is carried by those before it."""
    turn = np.eye(3)
    for circle in circles:
        turn = turn @ rotation(circle.axis, angles_deg[circle.name] + circle.offset_deg)
    return turn


def _plain(vector: FloatArray) -> Vector:
    x, y, z = vector.tolist()
    return x, y, z


def beamline_names() -> tuple[str, ...]:
    """Return the names of the beamlines that ship."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def load_beamline(name: str | Path) -> Beamline:
    """Read a beamline's description.

    Parameters
    ----------
    name
        Of one that ships, or the path of a TOML file.

    Raises
    ------
    InvalidInput
        If there is none, or it can't be understood; the message names the line or the entry.
    """
    path = PRESETS / f"{name}.toml" if str(name) in beamline_names() else Path(name).expanduser()
    if path.suffix != ".toml" or not path.is_file():
        raise InvalidInput(
            f"a beamline must be one of {', '.join(beamline_names())}, or the path of a TOML file, "
            f"got {str(name)!r}"
        )
    try:
        return Beamline.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} can't be read as TOML: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}" for item in error.errors()
        )
        raise InvalidInput(f"{path} must describe a beamline: {wrong}") from error
