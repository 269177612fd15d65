"""A stored raw run -> the rocking curve that its documents gave when it was measured."""

from bluesky_cdinn.callbacks._assembler import RockingCurveAssembler
from bluesky_cdinn.catalog import Catalog
from bluesky_cdinn.records import RockingCurve


def stored_curve(catalog: Catalog, raw_uid: str) -> RockingCurve:
    """Read a raw run back from Tiled, so that it can be reconstructed again.

    Raises
    ------
    NotFound
        No raw run has that uid.
    IncompleteScan, InvalidInput
        It is no rocking curve that can be reconstructed; see `RockingCurveAssembler`.
    """
    assembler = RockingCurveAssembler(catalog.settings.cdi)
    for name, document in catalog.raw_documents(raw_uid):
        assembler(name, document)
    return assembler.curve()
