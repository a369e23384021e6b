"""What the tests of the roles share."""

import pytest

from tests.conftest import IN_CI
from tests.lab import images


@pytest.fixture(scope="session")
def lab():
    """A machine that can boot the lab. Where it cannot, the tests are skipped, and under CI they fail."""
    try:
        images.require()
    except images.Impossible as error:
        if IN_CI:
            pytest.fail(str(error))
        pytest.skip(str(error))
