"""``dtls-endpoint check``: whether configuration and keys are right, and what they would do."""

from __future__ import annotations

import hashlib
import ipaddress
import math
from typing import TYPE_CHECKING, TypeVar

import attrs

from endpoint.about_keys import about_rotation, key_notes
from endpoint.admin import AdminError, look_at_socket
from endpoint.capture.files import CaptureFileError, look_at_directory
from endpoint.config import ConfigFileError, load_config
from endpoint.forward.looking import remarks_about
from endpoint.handoff import HandoffError
from endpoint.handoff_places import HandoffFile
from endpoint.keystore.file import KeyFileError
from endpoint.keystore.loading import LoadedCredentials, load_credentials
from endpoint.keystore.pem import certificate_validity, parse_certificate
from endpoint.keystore.sealing import load_sealing_keys
from endpoint.state.exclusive import StateFileError
from endpoint.state.sqlite import look_at
from endpoint.text import show_text
from endpoint.usage_file import UsageFileError, look_at_usage_file
from sansdtls import CertificateCredential, ConfigError, PathPolicy, ReturnRoutability

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from endpoint.config import EndpointConfig
    from endpoint.credentials import Credentials
    from endpoint.quotas import QuotaPolicy
    from endpoint.tables.metrics import Metrics
    from endpoint.tables.state import State
    from sansdtls import ConnectionIdPolicy, Limits


A = TypeVar("A")
T = TypeVar("T")


class NotRightError(Exception):
    """``problems``: each mistake as one line."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def load_all(path: Path) -> tuple[EndpointConfig, LoadedCredentials]:
    """The configuration and its credentials; :class:`NotRightError` lists the mistakes of both.

    ``config.dtls`` then has what ``[state]`` says as well: when to freeze, and the keys that seal.
    """
    try:
        config = load_config(path)
    except ConfigFileError as error:
        problems = list(error.problems)
        if error.credentials is not None:
            problems += _located(path, _attempted(load_credentials, error.credentials)[1])
        raise NotRightError(problems) from None
    loaded, problems = _attempted(load_credentials, config.credentials)
    problems = _located(path, problems)
    keys: tuple[bytes, ...] | None = ()
    if config.state.key_file:
        keys, more = _attempted(load_sealing_keys, config.state.key_file)
        problems += more
    if loaded is None or keys is None:
        raise NotRightError(problems)
    try:
        dtls = attrs.evolve(config.dtls, freeze_after=config.state.freeze_after, snapshot_keys=keys)
        loaded.complete(dtls, config.credentials)
    except ConfigError as error:
        raise NotRightError([f"{show_text(str(path))}: {error}"]) from None
    return attrs.evolve(config, dtls=dtls), loaded


def _located(path: Path, problems: list[str]) -> list[str]:
    """Those that are about a key, and not about a file that it names, with the configuration's name."""
    return [
        f"{show_text(str(path))}: {line}" if line.startswith("credentials.") else line for line in problems
    ]


def _attempted(load: Callable[[A], T], what: A) -> tuple[T | None, list[str]]:
    """What was loaded, or its mistakes."""
    try:
        return load(what), []
    except KeyFileError as error:
        return None, list(error.problems)


def describe(path: Path, config: EndpointConfig, loaded: LoadedCredentials, now: datetime) -> list[str]:
    """What a service with this configuration would do, and what is worth a look."""
    listen, server = config.listen, loaded.complete(config.dtls, config.credentials)
    lines = [
        f"{show_text(str(path))}: right",
        *(f"listens on UDP {_address(*place)}{_reach(place[0])}" for place in listen.places),
        *(
            []
            if listen.path_mtu_discovery
            else ["lets the network fragment datagrams, and does not hear of narrow paths"]
        ),
        f"while the address is not available: {_retry(listen.retry)}",
        *_credentials(config.credentials, loaded),
        *about_rotation(config),
        f"speaks DTLS 1.2 with {', '.join(suite.name for suite in server.cipher_suites)}",
        (
            f"extended master secret: {server.extended_master_secret.value}; datagrams of at most "
            f"{server.mtu} bytes; at most {server.limits.max_associations} associations"
        ),
        *_connection_ids(server.connection_id, server.limits),
        _sources(config.quotas),
        *_forward(config),
        *_state(config),
        _metrics(config.metrics),
        f"logs to standard error from level {config.log.level}; a stop takes at most {listen.drain:g} s",
    ]
    notes = [
        *loaded.notes,
        *loaded.remarks(now),
        *key_notes(config, loaded),
        *_about_state(config),
        *_about_metrics(config.metrics),
        *remarks_about(config.forward),
    ]
    told = config.credentials
    if loaded.identities == 0 and (source := told.psk_file or told.psk_database):
        how = " with a pre-shared key" if told.shows_something else ""
        notes.append(f"{show_text(str(source))}: no identity, so nobody can connect{how}")
    return lines + [f"note: {note}" for note in notes]


def _credentials(told: Credentials, loaded: LoadedCredentials) -> list[str]:
    lines = _psk(told, loaded)
    for credential in loaded.own:
        names = f" to clients that ask for {show_text(', '.join(credential.server_names))}"
        if isinstance(credential, CertificateCredential):
            subject = certificate_validity(parse_certificate(credential.chain[0]))
            until = "" if subject.ends is None else f", valid until {subject.ends:%Y-%m-%d}"
            lines.append(
                f"shows the certificate of {subject.name}{until}{names if credential.server_names else ''}"
            )
        else:
            digest = hashlib.sha256(credential.key.spki).hexdigest()
            lines.append(f"shows a raw public key, SHA-256 {digest}")
    if loaded.policy is not None:
        cas = _count(len(loaded.policy.anchors), "CA", "CAs")
        lists = _count(len(loaded.policy.crls), "revocation list", "revocation lists")
        sources = ", ".join(source.value for source in loaded.policy.identity_sources)
        lines += [
            (
                f"accepts certificates of {cas} from {show_text(str(told.client_ca))}, with {lists}"
                f" ({loaded.policy.crl_policy.value})"
            ),
            f"takes a certificate's identity from the first there is of {sources}",
        ]
    if told.raw_public_keys:
        devices = _count(loaded.raw_keys.devices, "device", "devices")
        lines.append(f"accepts the raw public keys of {devices} from {show_text(str(told.raw_public_keys))}")
    if told.shows_something:
        lines.append(_CLIENTS[told.asks_clients])
    return lines


def _psk(told: Credentials, loaded: LoadedCredentials) -> list[str]:
    if not told.psk_sources:
        return []
    if told.psk_valkey:
        from_where = (
            f"accepts the identities of {loaded.valkey and loaded.valkey.address}, names that begin with "
        )
        line = f'{from_where}"{show_text(told.valkey.prefix)}"; not asked now, as check touches no network'
    elif told.psk_module:
        line = f"accepts the identities of {show_text(told.psk_module)}, which was imported, and not called"
    else:
        line = (
            f"accepts {_count(loaded.identities or 0, 'identity', 'identities')} from "
            f"{show_text(str(told.psk_file or told.psk_database))}, {loaded.in_rotation} of them with a next key"
        )
    if told.psk_file:
        return [line]
    lookup = told.lookup
    remembers = (
        f"remembers for {lookup.negative_seconds:g} s that one is unknown (at most {lookup.negative_size})"
        if lookup.negative_seconds
        else "does not remember which are unknown"
    )
    return [
        line,
        (
            f"asks for keys at each handshake, {lookup.concurrency} at once, for {lookup.timeout:g} s; {remembers}; while "
            "there is no answer new handshakes are refused, and associations live on"
        ),
    ]


def _connection_ids(policy: ConnectionIdPolicy | None, limits: Limits) -> list[str]:
    ends = ", one with a connection ID ".join(
        "never" if seconds is None else f"after {_duration(seconds)} of silence"
        for seconds in (limits.idle_timeout, limits.idle_timeout_with_connection_id)
    )
    ends = f"ends an association {ends}"
    if policy is None or not policy.length:
        return ["gives no connection IDs: a device whose address changes has to handshake again", ends]
    begins = f", which begins with {policy.prefix.hex()}," if policy.prefix else ""
    believed = f"a new address is {_POLICIES[policy.path_policy]}"
    if policy.return_routability is not ReturnRoutability.OFF:
        believed = f"asks at a new address first ({policy.return_routability.value}); of devices that do not know that, {believed}"
    return [
        f"gives a connection ID of {policy.length} bytes{begins} to devices that offer it; {believed}",
        ends,
    ]


_POLICIES = {
    PathPolicy.MOVE: "believed at once",
    PathPolicy.APPLICATION: "never used, as nobody is asked here",
    PathPolicy.NEVER: "never used",
}


def _state(config: EndpointConfig) -> list[str]:
    state = config.state
    frozen = (
        "never freezes an association"
        if state.freeze_after is None
        else f"freezes an association after {state.freeze_after:g} s of silence"
    )
    sealed = f"sealed under the first of {_count(len(config.dtls.snapshot_keys), 'key', 'keys')}"
    if state.store == "sqlite":
        kept = (
            f"a restart, and a crash too, keeps all associations: written to {show_text(str(state.file))} every "
            f"{state.checkpoint_interval:g} s, {sealed}"
        )
    elif state.handoff_file:
        age = (
            ""
            if state.handoff_max_age is None
            else f" if that is within {state.handoff_max_age / 86_400:.4g} days"
        )
        kept = (
            f"a restart keeps all associations, a crash none: SIGTERM writes them to {show_text(str(state.handoff_file))}, "
            f"{sealed}, and the next start takes them back{age}"
        )
    else:
        kept = (
            "a restart keeps associations if the service manager keeps descriptors (FileDescriptorStoreMax= in the unit); "
            "else a stop tells every device, and they handshake again"
        )
    captures = (
        "captures nothing for anybody (state.capture_directory)"
        if state.capture_directory is None
        else f"captures for whoever may use {show_text(str(state.admin_socket))}, with secrets, into "
        f"{show_text(str(state.capture_directory))}"
    )
    return [frozen, kept, captures]


def state_mistakes(path: Path, state: State) -> list[str]:
    """What in ``[state]`` would keep a service from starting, as far as that can be seen without starting one."""
    mistakes = []
    if state.file is not None:
        try:
            look_at(state.file)
        except StateFileError as error:
            if error.code != "OWNER":  # it may be the service's, and somebody else is checking
                mistakes.append(f"file: {error}")
    if state.admin_socket is not None:
        try:
            look_at_socket(state.admin_socket)
        except AdminError as error:
            mistakes.append(f"admin_socket: {error}")
    if state.usage_file is not None:
        try:
            look_at_usage_file(state.usage_file)
        except UsageFileError as error:
            if error.code != "OWNER":  # as above
                mistakes.append(f"usage_file: {error}")
    if state.capture_directory is not None:
        try:
            look_at_directory(state.capture_directory)
        except CaptureFileError as error:
            mistakes.append(f"capture_directory: {error}")
    return [f"{show_text(str(path))}: state.{mistake}" for mistake in mistakes]


def _about_state(config: EndpointConfig) -> list[str]:
    state = config.state
    notes = []
    if state.handoff_file:
        if not state.handoff_file.parent.is_dir():
            notes.append(f"{show_text(str(state.handoff_file))}: its directory is not there")
        try:
            found = HandoffFile(state.handoff_file, config.dtls.snapshot_keys).find()
        except HandoffError as error:
            notes.append(f"{error}; the next start goes on without")
        else:
            if found is not None:
                held = _count(found.count, "association", "associations")
                notes.append(f"{found.where}: holds {held}, which the next start takes back")
                found.close()
    return notes


_CLIENTS = {
    "none": "anybody may connect without a credential: clients are asked for none",
    "wanted": "anybody may connect without a credential: clients are asked for one, and may have none",
    "required": "clients without a pre-shared key need a certificate or raw public key",
}


def _metrics(told: Metrics) -> str:
    if told.port == "off":
        return "serves no metrics over HTTP"
    where = _address(told.address, told.port)
    return f"serves /metrics, /healthz and /readyz over HTTP at {where}{_reach(told.address)}"


def _about_metrics(told: Metrics) -> list[str]:
    if told.port == "off" or told.loopback:
        return []
    who = "whoever reaches it can read the metrics without a password, over plain HTTP"
    return [f"metrics.address: {who}; remedy: 127.0.0.1, or a firewall"]


def _address(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}" if port else f"{shown}, any free port"


def _reach(host: str) -> str:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return ""
    return " (reachable from this host only)" if local else ""


def _retry(seconds: float) -> str:
    if not seconds:
        return "ends with an error"
    return "keeps trying" if seconds == math.inf else f"keeps trying for {seconds:g} s"


def _duration(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:.4g} {'day' if days == 1 else 'days'}" if days >= 1 else f"{seconds:g} s"


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _sources(policy: QuotaPolicy) -> str:
    rate = policy.handshakes_per_second
    numbers = "as many handshakes as come" if rate is None else f"{rate:g} handshakes a second"
    line = (
        f"takes an IPv4 /{policy.ipv4_prefix_length} and an IPv6 /{policy.ipv6_prefix_length} for one source, "
        f"which may begin {numbers}"
    )
    if policy.networks:
        others = _count(len(policy.networks), "network has", "networks have")
        line += f"; {others} limits of {'its' if len(policy.networks) == 1 else 'their'} own"
    return line


def _forward(config: EndpointConfig) -> list[str]:
    sinks = config.forward.sinks
    if len(sinks) == 1 and not sinks[0].chooses:
        return [sinks[0].in_words()]
    return [f'sink "{sink.label}", for {sink.for_whom()}: {sink.in_words()}' for sink in sinks]
