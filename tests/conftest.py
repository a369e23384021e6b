"""What all tests share: peers that may be missing, and how hypothesis behaves."""

import importlib
import os
import shutil
import signal
from types import ModuleType
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

BOOTING = ("tests/lab/", "tests/roles/")
IN_CI = os.environ.get("CI", "").lower() not in {"", "0", "false", "no"}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job; what the tests start would be deaf to Ctrl-C, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("local", deadline=None, print_blob=True)
# The same examples on each run: a red build is the change's fault, and a rerun shows the same.
settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if IN_CI else "local")


class ByFile(LoadScopeScheduling):
    """Where several processes share the tests (``-n``): a file is one's, and so are all files that boot hosts."""

    def _split_scope(self, nodeid: str) -> str:
        return "lab" if nodeid.startswith(BOOTING) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """xdist's hook."""
    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Hosts come first: what waits most should not be begun last."""
    items.sort(key=lambda item: not item.nodeid.startswith(BOOTING))


def require_program(name: str) -> str:
    """The path of a program; without it the test is skipped, but in CI, where it should be, fails."""
    path = shutil.which(name)
    if path is None:
        _is_missing(f"the program {name} is not installed")
    return path


def require_module(name: str) -> ModuleType:
    """As :func:`require_program`, for a Python module."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        _is_missing(f"the Python module {name} is not installed: {error}")


def require_file(path: str, *, origin: str = "a package") -> str:
    """As :func:`require_program`, for a file that a package brings, such as a jar."""
    if not os.path.exists(path):  # noqa: PTH110 - callers hand it to other programs, as text
        _is_missing(f"the file {path} of {origin} is not there")
    return path


def _is_missing(what: str) -> NoReturn:
    if IN_CI:
        pytest.fail(f"{what}; .ci/run should have installed it", pytrace=False)
    pytest.skip(what)
