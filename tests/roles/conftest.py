"""What the tests of the roles share: one fleet for a module, booted when the first test of it asks for it.

A module says in ``FLEET`` how many hosts of which kind it wants. Where no lab can boot, its tests fail under CI, because
nothing would be shown otherwise, and are skipped elsewhere.
"""

import pytest

from tests.lab.fleet import Fleet
from tests.lab.required import require_lab

SMALL = {"endpoints": 1, "devices": 1}
"""One host of each kind: what is shown of plugins needs no more."""


@pytest.fixture(scope="module")
def fleet(request):
    require_lab()
    with Fleet(**getattr(request.module, "FLEET", SMALL)) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def lab():
    """A machine that can boot the lab. Where it cannot, the tests are skipped, and under CI they fail."""
    require_lab()
