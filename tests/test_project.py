"""Rules of this repository that a reviewer should not have to remember."""

import ast
import importlib
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "sansdtls").rglob("*.py"))
SOURCES = CORE + sorted((ROOT / "endpoint").rglob("*.py"))

MAX_CODE_LINES = 450

NO_IO = {
    "asyncio",
    "importlib",
    "logging",
    "os",
    "random",
    "secrets",
    "select",
    "selectors",
    "socket",
    "ssl",
    "threading",
    "time",
    "trio",
}

PUBLIC = {
    "sansdtls": """
        Connection Server ClientConfig ServerConfig Limits RetransmitPolicy CookiePolicy ExtendedMasterSecret
        CipherSuite ProtocolVersion AlertDescription AlertLevel Outgoing ConnectionState Negotiated Peer
        ConnectionStatistics ServerStatistics key_log_line DEFAULT_CIPHER_SUITES AuthenticationProblem DiscardReason
        ConnectionOffered PskRequested PeerCertificateReceived PeerRawKeyReceived HandshakeCompleted DataReceived
        PathChanged AlertReceived SecretDerived ConnectionTerminated
        LocalClose PeerClose PeerAlert ProtocolViolation PeerIncompatible AuthenticationFailed HandshakeTimeout
        KeysExhausted LimitExceeded IdleTimeout
        DtlsError UsageError ConfigError WrongState MessageTooLarge SnapshotError
    """.split(),
    "endpoint": "serve_dtls open_dtls DtlsChannel".split(),
}
"""The contract of the design. A name counts from the moment that some module of the package defines it."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name_of(path))


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=name_of)


# --- size -------------------------------------------------------------------------------------------


def code_lines(source: str) -> int:
    """Lines that hold code: blank lines, comments and docstrings, which explain it, are free."""
    text: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            text.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - text)


def test_comments_blank_lines_and_docstrings_are_not_counted_as_code():
    assert code_lines('"""Two\nlines."""\n\n# why\nx = (\n    1\n)\n"""Of x."""\n') == 3


@each(SOURCES)
def test_a_file_is_one_concern_and_has_at_most_450_lines_of_code(path):
    assert code_lines(path.read_text(encoding="utf-8")) <= MAX_CODE_LINES


# --- sans-IO ----------------------------------------------------------------------------------------


def imported_packages(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module.partition(".")[0]
            case ast.Call(func=ast.Name(id="__import__" | "open" | "input" | "print" as name)):
                yield name


def test_an_import_inside_a_function_is_found():
    tree = ast.parse(
        "def f():\n    from os.path import join\n    import time as t, attrs\n    __import__('x')"
    )
    assert sorted(imported_packages(tree)) == ["__import__", "attrs", "os", "time"]


@each(CORE)
def test_the_core_imports_nothing_that_does_io_not_even_inside_a_function(path):
    assert not (NO_IO | {"__import__", "open", "input", "print", "endpoint"}) & set(
        imported_packages(tree_of(path))
    )


@each([path for path in CORE if "testing" not in path.parts])  # a virtual clock may well start at zero
def test_every_call_that_takes_the_time_takes_it_as_now_without_a_default(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            positional = arguments.posonlyargs + arguments.args
            defaulted = positional[len(positional) - len(arguments.defaults) :]
            keywords = [
                argument
                for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                if default is not None
            ]
            assert not {"now", "entropy"} & {argument.arg for argument in defaulted + keywords}, node.name


# --- secrets ----------------------------------------------------------------------------------------

SECRET = re.compile(r"(^|_)(cookie|verify_data|mac|secret|psk|key|tag|digest)$")
"""Names of bytes that an attacker may try to guess. Upper case is a code point, not a secret."""
NOT_SECRET = re.compile(r"#\s*not secret: \S")
"""A comparison that is none of bytes, or of public bytes, says so, with the reason, on its line."""


def secret_operand(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return bool(SECRET.search(name))
        case ast.Subscript(value=value):
            return secret_operand(value)
        case ast.Call(func=ast.Name(id="bytes"), args=[value]):
            return secret_operand(value)
        case _:
            return False


def early_exit_comparisons(source: str) -> Iterator[int]:
    """Lines that compare a secret with an operator, which takes longer the more leading bytes match."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Compare):
            continue
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            match operator:
                case ast.Eq() | ast.NotEq():
                    # Against a constant, such as b"", the length of the match tells nothing.
                    careless = (secret_operand(left) and not isinstance(right, ast.Constant)) or (
                        secret_operand(right) and not isinstance(left, ast.Constant)
                    )
                case ast.In() | ast.NotIn():
                    careless = secret_operand(left) and isinstance(right, ast.Tuple | ast.List)
                case _:
                    careless = False
            if careless and not NOT_SECRET.search(lines[node.lineno - 1]):
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("cookie == expected", True),
        ("expected != hello.cookie", True),
        ("self._verify_data[:12] == data", True),
        ("given in (old_cookie, new)", False),
        ("cookie in (old, new)", True),
        ("bytes(tag) == other", True),
        ("cookie == b''", False),
        ("len(cookie) == 32", False),
        ("cookie_length == other", False),
        ("key in table", False),
        ("suite == CipherSuite.TLS_PSK", False),
        ("kind == KEY", False),
        ("key == other.key  # not secret: both are dictionary keys", False),
        ("key == other.key  # not secret:", True),
        ("hmac.compare_digest(cookie, expected)", False),
    ],
)
def test_the_search_for_comparisons_of_secrets_finds_what_it_should(source, found):
    assert bool(list(early_exit_comparisons(source))) is found


@each(CORE)
def test_secrets_are_compared_in_constant_time(path):
    assert list(early_exit_comparisons(path.read_text(encoding="utf-8"))) == []


# --- what is public is explained --------------------------------------------------------------------


def is_text(node: ast.stmt | None) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def undocumented_fields(tree: ast.Module) -> Iterator[str]:
    """Fields without a string under them, in the classes that hold numbers an operator may set."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (node.name == "Limits" or node.name.endswith("Policy")):
            for statement, below in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and not is_text(below):
                    yield f"{node.name}.{ast.unparse(statement.target)}"


def test_a_field_without_a_docstring_is_found():
    tree = ast.parse('class QuotaPolicy:\n    a: int = 1\n    """Why."""\n    b: int = 2\n    c: int = 3\n')
    assert list(undocumented_fields(tree)) == ["QuotaPolicy.b", "QuotaPolicy.c"]


@each(SOURCES)
def test_every_field_of_limits_and_of_policies_says_what_it_is_and_why(path):
    assert list(undocumented_fields(tree_of(path))) == []


def definitions(package: str) -> dict[str, list[bool]]:
    """Every name that a module of the package defines at its top, and whether each has a docstring."""
    found: dict[str, list[bool]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        body = tree_of(path).body
        for node, below in zip(body, [*body[1:], None], strict=True):
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    found.setdefault(node.name, []).append(ast.get_docstring(node) is not None)
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    found.setdefault(name, []).append(is_text(below))
    return found


def undocumented_methods(package: str) -> Iterator[str]:
    """Public methods and properties, without a docstring, of the classes that the package exports."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and node.name in exported(package):
                for method in node.body:
                    if (
                        isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                        and not method.name.startswith("_")
                        and ast.get_docstring(method) is None
                    ):
                        yield f"{node.name}.{method.name}"


def exported(package: str) -> list[str]:
    return list(getattr(importlib.import_module(package), "__all__", ()))


@pytest.mark.parametrize("package", PUBLIC)
def test_every_name_of_the_contract_that_exists_is_exported(package):
    assert sorted(set(PUBLIC[package]) & set(definitions(package)) - set(exported(package))) == []


@pytest.mark.parametrize("package", PUBLIC)
def test_every_exported_name_exists_and_is_exported_once(package):
    module = importlib.import_module(package)
    assert [name for name in exported(package) if not hasattr(module, name)] == []
    assert len(set(exported(package))) == len(exported(package))


@pytest.mark.parametrize("package", PUBLIC)
def test_every_exported_name_has_a_docstring(package):
    defined = definitions(package)
    # The unions of all events and of all causes are explained by their members.
    assert [
        name
        for name in exported(package)
        if name not in {"Event", "Cause"} and not all(defined.get(name, [True]))
    ] == []


@pytest.mark.parametrize("package", PUBLIC)
def test_every_public_method_of_an_exported_class_has_a_docstring(package):
    assert list(undocumented_methods(package)) == []


# --- what is installed ------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    """Name, normalised as PyPI does, and version of each line of constraints.txt, which may be for some Pythons only."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    told = (line.partition(";")[0].strip() for line in lines if not line.startswith("#"))
    pairs = (line.partition("==")[::2] for line in told if line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_constraints_are_exact_versions_and_name_no_place_to_get_them_from():
    assert "//" not in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9-]+", name), name
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), f"{name}=={version}"


def test_everything_that_is_required_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    required = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for group in (
        *project["project"]["optional-dependencies"].values(),
        *project["dependency-groups"].values(),
    ):
        required += [requirement for requirement in group if isinstance(requirement, str)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower() for requirement in required}
    assert sorted(names - set(pins())) == []


def test_the_core_needs_no_event_loop():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[^\w.-]", requirement)[0] for requirement in project["dependencies"]}
    assert names == {"attrs", "cryptography", "pyOpenSSL"}
