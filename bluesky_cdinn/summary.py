"""What a prompt and a plan are told of a reconstruction: where it is and how good, without its arrays."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Self

from bluesky_cdinn.records import Reconstruction

StoredStatus = Literal["success", "failed", "cancelled", "running"]
"""Of a processed run; a running one's scan has not ended."""


@dataclass(frozen=True)
class ReconstructionSummary:
    """One processed run, as far as its start document says it.

    Parameters
    ----------
    raw_uid, processed_uid
        Of the scan, and of the run that holds its reconstruction; the latter empty where it could not even
        be written down.
    status, reason
        A failed reconstruction has a reason.
    chi2, free_llk, confidence, seconds
        As in `Reconstruction`; NaN where unknown.
    scalars
        Every number of the result, those four among them, physical ones such as ``size_nm`` where known.
    sample
        As the raw run names it.
    time
        When its reconstruction began, with the first partial result where there was one; s since 1970.
    """

    raw_uid: str
    processed_uid: str = ""
    status: StoredStatus = "success"
    reason: str = ""
    chi2: float = math.nan
    free_llk: float = math.nan
    confidence: float = 0.0
    seconds: float = math.nan
    scalars: Mapping[str, float] = field(default_factory=dict)
    sample: str = ""
    time: float = math.nan
    _load: Callable[[str], Reconstruction] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_start(
        cls, start: Mapping[str, Any], load: Callable[[str], Reconstruction] | None = None
    ) -> Self:
        """Read the start document of a processed run; `load` gets its uid."""
        scalars = dict(start["scalars"])
        names = ("chi2", "free_llk", "confidence", "seconds")
        return cls(
            raw_uid=start["raw_uid"],
            processed_uid=start["uid"],
            status=start["status"],
            reason=start.get("reason", ""),
            **{name: scalars[name] for name in names if name in scalars},
            scalars=scalars,
            sample=str(start.get("sample", "")),
            time=start["time"],
            _load=load,
        )

    @property
    def success(self) -> bool:
        """Whether there is a crystal to load."""
        return self.status == "success"

    def load(self) -> Reconstruction:
        """Read the arrays, from Tiled or from where they wait for it.

        Raises
        ------
        NotFound
            It is stored nowhere.
        StoreUnavailable
            Tiled can't be reached.
        """
        if self._load is None:
            raise LookupError("this summary was made without a catalog to load from")
        return self._load(self.processed_uid)

    def __getstate__(self) -> dict[str, Any]:
        # A catalog stays in its process; a queueserver sends summaries to another one.
        return {**self.__dict__, "scalars": dict(self.scalars), "_load": None}

    def __str__(self) -> str:
        name = self.processed_uid[:8] or "not stored"
        head = f"reconstruction {name} of scan {self.raw_uid[:8]}"
        if self.status == "running":
            return f"{head}: the scan still runs"
        if not self.success:
            return f"{head}: {self.status}: {self.reason}"
        numbers = [f"chi2 {self.chi2:.4g}", f"confidence {self.confidence:.2f}", f"{self.seconds:.1f} s"]
        if "resolution_nm" in self.scalars:
            numbers.insert(1, f"resolution {self.scalars['resolution_nm']:.1f} nm")
        when = "" if math.isnan(self.time) else f" ({datetime.fromtimestamp(self.time):%Y-%m-%d %H:%M})"
        return f"{head}: {', '.join(numbers)}{when}"

    def __repr__(self) -> str:
        return f"<{self}>"
