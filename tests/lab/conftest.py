"""The lab is tried on itself."""

import pytest

from tests.lab.required import require_lab


@pytest.fixture(scope="session", autouse=True)
def lab():
    require_lab()
