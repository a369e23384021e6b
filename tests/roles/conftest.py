"""What the tests of the roles share."""

import pytest

from tests.lab.required import require_lab


@pytest.fixture(scope="session")
def lab():
    """A machine that can boot the lab. Where it cannot, the tests are skipped, and under CI they fail."""
    require_lab()
