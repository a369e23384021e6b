"""Whether this machine can have a lab: fails under CI where it cannot, because then nothing would be shown; skips else."""

import pytest

from tests.conftest import IN_CI
from tests.lab import images


def require_lab():
    """Skip the test, or fail it in CI, unless root and all programs are here."""
    try:
        images.require()
    except images.Impossible as error:
        if IN_CI:
            pytest.fail(f"{error}; .ci/run should have seen to it", pytrace=False)
        pytest.skip(str(error))
