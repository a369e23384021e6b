"""What all tests share: peers that may be missing, and how hypothesis behaves."""

import importlib
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
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


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the work (``-n``): a file is one's, and so are all that boot hosts, which come first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("lab" if _boots_hosts(item) else item.path.stem))
    items.sort(key=_boots_hosts, reverse=True)


def _boots_hosts(item: pytest.Item) -> bool:
    return item.path.relative_to(HERE).parts[0] in {"lab", "roles"}


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
