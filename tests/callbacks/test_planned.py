"""What the plan announced is understood, or left alone."""

import bluesky.plans as bp
import numpy as np
import pytest
from bluesky import RunEngine
from hypothesis import given
from hypothesis import strategies as st
from ophyd.sim import SynAxis, det

from bluesky_cdinn.callbacks._planned import planned_angles
from bluesky_cdinn.plans import rocking_scan

MEASURED = np.array([-0.2, -0.1])


def start_of(plan, at=0.0):
    """Return the start document of a plan that was run."""
    seen = []
    theta, other = SynAxis(name="theta"), SynAxis(name="other")
    theta.set(at)
    RunEngine({})(plan(theta, other), {"start": [lambda _, doc: seen.append(doc)]})
    return seen[0]


@pytest.mark.parametrize("relative", [False, True])
def test_a_rocking_scan_announces_absolute_angles(relative):
    start = start_of(
        lambda theta, _: rocking_scan(det, theta, 0.3, -0.3, 7, relative=relative, repeats=2), at=0.2
    )
    first, last, number = start["cdi"]["planned_deg"]
    centre = 0.2 if relative else 0.0
    assert (first, last, number) == pytest.approx((centre + 0.3, centre - 0.3, 7))
    angles = planned_angles(start, "theta", 1.0, np.array([first, last]))
    np.testing.assert_allclose(angles, np.linspace(first, last, 7))


@pytest.mark.parametrize(
    ("plan", "measured", "planned"),
    [
        (lambda t, o: bp.scan([det], t, -0.2, 0.2, 5), MEASURED, np.linspace(-0.2, 0.2, 5)),
        (lambda t, o: bp.scan([det], o, 5, 9, t, -0.2, 0.2, 5), MEASURED, np.linspace(-0.2, 0.2, 5)),
        (lambda t, o: bp.list_scan([det], t, [-0.2, 0.0, 0.1]), MEASURED, [-0.2, 0.0, 0.1]),
        (lambda t, o: bp.rel_scan([det], t, -0.2, 0.2, 5), MEASURED + 3, np.linspace(2.8, 3.2, 5)),
        (lambda t, o: bp.rel_list_scan([det], t, [-0.2, 0.0]), MEASURED + 3, [2.8, 3.0]),
        (lambda t, o: bp.grid_scan([det], o, 5, 9, 2, t, -0.2, 0.2, 5), MEASURED, None),
        (lambda t, o: bp.count([det], 3), MEASURED, None),
        # The motor went elsewhere than the plan seems to say.
        (lambda t, o: bp.scan([det], t, -0.2, 0.2, 5), MEASURED + 1, None),
    ],
)
def test_scans_of_bluesky(plan, measured, planned):
    found = planned_angles(start_of(plan), "theta", 1.0, measured)
    if planned is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, planned)


def test_a_motor_in_another_unit():
    start = start_of(lambda t, _: bp.scan([det], t, -200, 200, 5))
    np.testing.assert_allclose(planned_angles(start, None, 1e-3, MEASURED), np.linspace(-0.2, 0.2, 5))


JUNK = st.none() | st.integers() | st.floats() | st.text(max_size=3)
PATTERN = {
    "cdi": st.fixed_dictionaries({}, optional={"planned_deg": st.lists(JUNK, max_size=4) | JUNK}),
    "plan_pattern": st.sampled_from(["inner_product", "inner_list_product", "spiral"]) | JUNK,
    "plan_pattern_args": st.fixed_dictionaries({}, optional={"args": st.lists(JUNK), "num": JUNK}) | JUNK,
    "motors": st.lists(st.text(max_size=2)) | JUNK,
    "plan_name": JUNK,
}


@given(st.fixed_dictionaries({}, optional=PATTERN))
def test_nonsense_announces_nothing(start):
    found = planned_angles(start, "theta", 1.0, MEASURED)
    assert found is None or np.isfinite(found).all()
