"""The session: RunEngine, store and live reconstruction, as the settings file and the environment say."""

from bluesky_cdinn.beamline_session import start_session

session = start_session()
RE, catalog, live = session.RE, session.catalog, session.live
