"""The configuration file: defaults, every kind of mistake, and that secrets stay out of messages."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from endpoint.config import ConfigFileError, EndpointConfig, load_config, parse_config
from endpoint.credentials import Credentials
from endpoint.keystore.loading import LoadedCredentials
from endpoint.quotas import IdentityOverflow
from endpoint.structure import structure
from endpoint.tables.state import State
from endpoint.values import StructureError
from sansdtls import (
    CipherSuite,
    ConnectionIdPolicy,
    ExtendedMasterSecret,
    PathPolicy,
    RetransmitPolicy,
    ReturnRoutability,
)

HOME = Path("/etc/dtls-endpoint")
CREDENTIALS = '[credentials]\npsk_file = "psk.txt"\n'
KEY = "00112233445566778899aabbccddeeff"


def parsed(text: str) -> EndpointConfig:
    return parse_config(text.encode(), name="endpoint.toml", directory=HOME)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigFileError) as caught:
        parsed(text)
    return caught.value.problems


def test_credentials_alone_are_enough():
    config = parsed(CREDENTIALS)
    assert (config.listen.address, config.listen.port) == ("127.0.0.1", 5684)
    assert config.credentials.psk_file == HOME / "psk.txt"
    assert config.forward.kind == "jsonl"
    server = LoadedCredentials().complete(config.dtls, config.credentials)
    assert (server.psk, server.psk_identity_hint, server.credentials) == (True, None, ())


def test_an_absolute_psk_file_is_taken_as_it_is():
    assert parsed('[credentials]\npsk_file = "/run/keys"').credentials.psk_file == Path("/run/keys")


def test_every_table_is_read():
    config = parsed(
        CREDENTIALS
        + """
        identity_hint = "fleet"
        [listen]
        address = "::1"
        port = 0
        retry = inf
        receive_buffer = 65536
        [dtls]
        cipher_suites = ["PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_AES_128_GCM_SHA256"]
        extended_master_secret = "required"
        mtu = 512
        retransmit = "constrained"
        limits.max_associations = 7
        limits.idle_timeout = "never"
        cookie.rotation = 30
        [quotas]
        handshakes_per_second = "unlimited"
        identity_overflow = "newcomer"
        [forward]
        kind = "echo"
        [log]
        level = "warning"
        """
    )
    assert config.listen.port == 0
    assert config.listen.retry == float("inf")
    server = LoadedCredentials().complete(config.dtls, config.credentials)
    assert server.cipher_suites == (
        CipherSuite.TLS_PSK_WITH_AES_128_CCM_8,
        CipherSuite.TLS_PSK_WITH_AES_128_GCM_SHA256,
    )
    assert server.extended_master_secret is ExtendedMasterSecret.REQUIRED
    assert server.mtu == 512
    assert server.retransmit == RetransmitPolicy.constrained()
    assert server.limits.max_associations == 7
    assert server.limits.idle_timeout is None
    assert server.cookie.rotation == 30
    assert server.psk_identity_hint == b"fleet"
    assert config.quotas.handshakes_per_second is None
    assert config.quotas.identity_overflow is IdentityOverflow.NEWCOMER
    assert config.forward.kind == "echo"
    assert config.log.level == "warning"


def test_connection_ids_are_a_table_and_can_be_switched_off():
    policy = parsed(
        CREDENTIALS
        + """
        [dtls.connection_id]
        length = 10
        prefix = "00ff"
        padding = 16
        return_routability = "enhanced"
        path_policy = "never"
        probe_timeout = 2
        max_probes = 5
        """
    ).dtls.connection_id
    assert policy == ConnectionIdPolicy(
        length=10,
        prefix=b"\x00\xff",
        padding=16,
        return_routability=ReturnRoutability.ENHANCED,
        path_policy=PathPolicy.NEVER,
        probe_timeout=2,
        max_probes=5,
    )
    assert parsed(CREDENTIALS).dtls.connection_id == ConnectionIdPolicy()
    assert parsed(CREDENTIALS + '[dtls]\nconnection_id = "off"').dtls.connection_id is None
    assert parsed(CREDENTIALS + '[dtls]\nresumption = "off"').dtls.resumption is None


def test_every_key_of_connection_ids_but_the_function_can_stand_in_the_file():
    assert problems(CREDENTIALS + '[dtls.connection_id]\ngenerator = "x"') == (
        "endpoint.toml: dtls.connection_id.generator: unknown key",
    )


def test_what_is_saved_and_where_is_a_table():
    state = parsed(
        CREDENTIALS
        + """
        [state]
        freeze_after = "never"
        store = "sqlite"
        file = "/var/lib/dtls/associations.db"
        checkpoint_interval = 0.5
        key_file = "state.key"
        handoff_max_age = "never"
        admin_socket = "/run/dtls/admin"
        """
    ).state
    assert state == State(
        freeze_after=None,
        store="sqlite",
        file=Path("/var/lib/dtls/associations.db"),
        checkpoint_interval=0.5,
        key_file=HOME / "state.key",
        handoff_max_age=None,
        admin_socket=Path("/run/dtls/admin"),
    )
    handed = parsed(CREDENTIALS + '[state]\nhandoff_file = "h"\nkey_file = "k"').state
    assert (handed.handoff_file, handed.freeze_after) == (HOME / "h", 300.0)
    assert parsed(CREDENTIALS).state == State()


@pytest.mark.parametrize(
    ("state", "mistakes"),
    [
        (
            'store = "sqlite"',
            [
                'file: missing; remedy: add  file = "associations.db"',
                'key_file: missing; store = "sqlite" needs it; remedy: add  key_file = "state.key"',
            ],
        ),
        ('file = "f"', ['file: is of no use with store = "memory"; remedy: store = "sqlite"']),
        (
            'handoff_file = "f"',
            ['key_file: missing; handoff_file needs it; remedy: add  key_file = "state.key"'],
        ),
        (
            'store = "sqlite"\nfile = "f"\nkey_file = "k"\nhandoff_file = "h"',
            ['handoff_file: is of no use with store = "sqlite", which keeps everything; remedy: remove it'],
        ),
        (
            'handoff_file = "f"\nkey_file = "./f"\nadmin_socket = "/etc/dtls-endpoint/f"',
            [
                "handoff_file: is the same file as key_file; remedy: name another",
                "admin_socket: is the same file as key_file; remedy: name another",
            ],
        ),
        (
            f'admin_socket = "{"x" * 90}"',
            ["admin_socket: the name has more than 107 bytes; remedy: a shorter directory"],
        ),
        ("freeze_after = 0", ["freeze_after: 0 is not within 0.001 to 31536000 seconds"]),
        ("handoff_max_age = 0", ["handoff_max_age: 0 is not within 0.001 to 31536000 seconds"]),
        ("checkpoint_interval = 0", ["checkpoint_interval: 0 is not within 0.01 to 3600 seconds"]),
        ('admin_socket = "\\u0000x"', ["admin_socket: a file name cannot hold a NUL character"]),
        ('store = "disk"', ['store: "disk" is not one of memory, sqlite']),
    ],
)
def test_what_does_not_go_together_in_the_state_table_is_told_with_a_remedy(state, mistakes):
    assert list(problems(CREDENTIALS + "[state]\n" + state)) == [
        f"endpoint.toml: state.{mistake}" for mistake in mistakes
    ]


def test_contradictions_of_credentials_and_state_are_told_together():
    found = problems('[credentials]\nprivate_key = "k"\n[state]\nstore = "sqlite"')
    assert [line.split(": ")[1] for line in found] == [
        "credentials.certificate",
        "state.file",
        "state.key_file",
    ]


def test_the_retransmission_timer_may_be_a_table():
    policy = parsed(CREDENTIALS + "[dtls.retransmit]\ninitial_timeout = 2").dtls.retransmit
    assert policy == RetransmitPolicy(initial_timeout=2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "",
            'credentials: missing; remedy: add  [credentials]  and below it  psk_file = "psk.txt"  or a certificate',
        ),
        (
            "[credentials]",
            'credentials: nobody could connect; remedy: add  psk_file = "psk.txt"  or a certificate and its key',
        ),
        ("[credentials]\npsk_file = ''", "credentials.psk_file: the name of a file is needed, not nothing"),
        ("credentials = 1", "credentials: a table is needed, not a whole number (1)"),
        (CREDENTIALS + "[listn]", 'listn: unknown key (did you mean "listen"?)'),
        (CREDENTIALS + "[listen]\nprot = 1", 'listen.prot: unknown key (did you mean "port"?)'),
        ("mtu = 512\n" + CREDENTIALS, 'mtu: unknown key (did you mean "dtls.mtu"?)'),
        (CREDENTIALS + "[metrix]", 'metrix: unknown key (did you mean "metrics"?)'),
        (CREDENTIALS + "[listen]\nport = '5684'", 'listen.port: a whole number is needed, not text ("5684")'),
        (CREDENTIALS + "[listen]\nport = 2.5", "listen.port: a whole number is needed, not a number (2.5)"),
        (
            CREDENTIALS + "[listen]\nport = true",
            "listen.port: a whole number is needed, not true or false (true)",
        ),
        (CREDENTIALS + "[listen]\nport = 70000", "listen.port: 70000 is not within 0 to 65535"),
        (CREDENTIALS + "[listen]\nretry = -1", "listen.retry: -1 is not at least 0 seconds"),
        (CREDENTIALS + "[listen]\nretry = nan", "listen.retry: nan is not at least 0 seconds"),
        (
            CREDENTIALS + '[listen]\naddress = "[::1]"',
            'listen.address: "[::1]" has brackets; remedy: leave them out',
        ),
        (
            CREDENTIALS + '[listen]\naddress = "10.0.0"',
            'listen.address: "10.0.0" is not an address ("0.0.0.0" = all of IPv4, "::" = IPv6 and IPv4)',
        ),
        (
            CREDENTIALS + '[listen]\naddress = "127.0.0.1:5684"',
            'listen.address: "127.0.0.1:5684" is no IPv6 address (a port belongs in listen.port)',
        ),
        (
            CREDENTIALS + '[quotas]\nhandshakes_per_second = "none"',
            'quotas.handshakes_per_second: "none" is not one of never, unlimited',
        ),
        (
            CREDENTIALS + "[quotas]\nhandshake_burst = 0",
            "quotas.handshake_burst: 0 is not a whole number within 1 to 1000000 handshakes",
        ),
        (CREDENTIALS + "[dtls]\nmtu = 100", "dtls.mtu: 100 is not within 256 to 65507 bytes"),
        (CREDENTIALS + "[dtls]\nlog_secrets = true", "dtls.log_secrets: unknown key"),
        (CREDENTIALS + "[dtls]\ncipher_suites = []", "dtls.cipher_suites: at least one is needed"),
        (
            CREDENTIALS + '[dtls]\ncipher_suites = ["PSK_WITH_AES_128_CCM8"]',
            (
                'dtls.cipher_suites: "PSK_WITH_AES_128_CCM8" is not a cipher suite of this program '
                '(did you mean "TLS_PSK_WITH_AES_128_CCM_8"?)'
            ),
        ),
        (
            CREDENTIALS + '[dtls]\nextended_master_secret = "require"',
            (
                'dtls.extended_master_secret: "require" is not one of preferred, required '
                '(did you mean "required"?)'
            ),
        ),
        (
            CREDENTIALS + '[dtls]\nretransmit = "slow"',
            'dtls.retransmit: "slow" is not one of default, constrained',
        ),
        (
            CREDENTIALS + "[dtls.retransmit]\ninitial_timeout = 70",
            "dtls.retransmit.maximum_timeout: 60.0 is below initial_timeout (70)",
        ),
        (
            CREDENTIALS + '[forward]\nkind = "ehco"',
            'forward.kind: "ehco" is not one of jsonl, echo, udp, unix, valkey (did you mean "echo"?)',
        ),
        (CREDENTIALS + "[log]\nlevel = 3", "log.level: 3 is not one of debug, info, warning, error"),
        (CREDENTIALS + "identity_hint = ''", "credentials.identity_hint: has 0 bytes, not 1 to 128"),
        (CREDENTIALS + "[quotas]\nmystery = 1", "quotas.mystery: unknown key"),
        (
            CREDENTIALS + '[dtls.connection_id]\nprefix = "0"',
            'dtls.connection_id.prefix: "0" is not an even number of hex digits',
        ),
        (
            CREDENTIALS + "[dtls.connection_id]\nprefix = 7",
            "dtls.connection_id.prefix: text in hex digits is needed, not a whole number (7)",
        ),
        (
            CREDENTIALS + '[dtls.connection_id]\nprefix = "0102030405060708"',
            "dtls.connection_id.prefix: 8 bytes leave no random byte of 8",
        ),
        (
            CREDENTIALS + '[dtls.connection_id]\npath_policy = "always"',
            'dtls.connection_id.path_policy: "always" is not one of move, application, never',
        ),
        (CREDENTIALS + '[dtls]\nconnection_id = "on"', 'dtls.connection_id: "on" is not one of off'),
        (
            CREDENTIALS + "[dtls]\nconnection_id = 8",
            "dtls.connection_id: a table is needed, not a whole number (8)",
        ),
        (CREDENTIALS + "[dtls]\nfreeze_after = 8", "dtls.freeze_after: unknown key"),
        (CREDENTIALS + "[dtls]\nsnapshot_keys = 8", "dtls.snapshot_keys: unknown key"),
        (
            CREDENTIALS + "[dtls]\npath_policy = 8",
            'dtls.path_policy: unknown key (did you mean "connection_id.path_policy"?)',
        ),
        ("[credentials\n", "line 1, column 13: Expected ']' at the end of a table declaration"),
    ],
)
def test_a_mistake_is_one_line_with_file_key_and_remedy(text, problem):
    assert problems(text) == (f"endpoint.toml: {problem}",)


def test_all_mistakes_are_reported_at_once():
    found = problems(
        """
        tempo = 1
        [listen]
        port = -1
        retry = -1
        adress = "::1"
        [dtls.limits]
        max_half_open = 0
        max_associations = 0
        replay_window = "wide"
        """
    )
    assert [line.split(": ")[1] for line in found] == [
        "tempo",
        "listen.adress",
        "listen.port",
        "listen.retry",
        "dtls.limits.replay_window",
        "dtls.limits.max_half_open",
        "dtls.limits.max_associations",
        "credentials",
    ]


def test_text_that_is_not_utf_8_is_named_with_its_line():
    with pytest.raises(ConfigFileError) as caught:
        parse_config(b"[log]\nlevel = '\xff'", name="endpoint.toml", directory=HOME)
    assert caught.value.problems == ("endpoint.toml: line 2: not UTF-8",)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigFileError) as caught:
        load_config(tmp_path / "none.toml")
    assert caught.value.problems == (f"{tmp_path}/none.toml: cannot be read: no such file or directory",)


@pytest.mark.parametrize(
    "text",
    [
        f'[credentials]\npsk_file = "dev1:{KEY}"',
        f'[credentials]\npsk = "{KEY}"',
        f'[credentials]\npsk_file = ["{KEY}"]',
        f'[credentials]\npsk_file = "a"\nidentity_hint = {int(KEY, 16)}',
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(text):
    shown = "\n".join(problems(text))
    assert KEY not in shown
    assert str(int(KEY, 16)) not in shown


def test_the_credentials_are_known_even_when_another_key_is_wrong():
    with pytest.raises(ConfigFileError) as caught:
        parsed(CREDENTIALS + "[listen]\nport = -1")
    assert caught.value.credentials == Credentials(psk_file=HOME / "psk.txt")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    "address port retry psk_file identity_hint cipher_suites extended_master_secret mtu retransmit limits cookie "
    "initial_timeout maximum_timeout idle_timeout replay_window handshake_burst identity_overflow kind buffer "
    "level failures_burst unknown certificate private_key names client_ca client_identity client_authentication "
    "raw_public_keys groups signature_schemes alpn_protocols record_size_limit resumption lifetime connection_id length "
    "prefix generator padding path_policy store file key_file handoff_file checkpoint_interval admin_socket".split()
)
TABLES = st.sampled_from(["listen", "credentials", "dtls", "quotas", "forward", "state", "log", "other"])


@given(st.dictionaries(TABLES, VALUES | st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES))))
def test_whatever_stands_in_the_file_is_right_or_told(tables):
    try:
        structure(tables, EndpointConfig, private=("credentials",))
    except StructureError as error:
        assert error.mistakes
        for key, what in error.mistakes:
            assert key
            assert what
