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


@pytest.fixture(scope="module")
def admin(fleet):
    """A user of the systemd host who may become root, with a password."""
    host = fleet["endpoint-1"]
    host.ssh(
        "useradd --create-home --shell /bin/bash admin && echo admin:hunter22 | chpasswd && usermod -aG sudo admin"
    )
    # sudo looks its own name up.
    host.ssh("echo 127.0.1.1 endpoint-1 >>/etc/hosts")
    host.ssh(
        "install -d -o admin -m 700 /home/admin/.ssh && install -o admin -m 600 /root/.ssh/authorized_keys /home/admin/.ssh/"
    )
    return {"ansible_user": "admin", "ansible_become": True, "ansible_become_password": "hunter22"}
