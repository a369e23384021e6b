"""Comes last: of all that the tests before it ran, each task of each role was seen to change something, and not to."""

from pathlib import Path

import pytest

from tests.lab import recorder
from tests.lab.required import require_lab
from tests.roles.role_files import ROLES, all_roles

HERE = Path(__file__).parent


def _whole(request):
    """Whether all tests of the roles are part of this run."""
    run = {Path(item.path) for item in request.session.items}
    chosen = request.config.option.keyword or request.config.option.markexpr
    return not chosen and run >= set(HERE.glob("test_*.py"))


@pytest.mark.parametrize("role", [role for role in all_roles() if role.tasks], ids=lambda role: role.name)
def test_each_task_was_seen_changed_and_ok(request, role):
    require_lab()
    if not _whole(request):
        pytest.skip("only a part of the roles' tests was run")
    missing = [
        line for line in recorder.never_seen(ROLES, recorder.everything) if line.startswith(f"{role.name}: ")
    ]
    assert not missing, "\n".join(missing)
