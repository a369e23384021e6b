"""docs/configuration.md is what the classes of the configuration say."""

import re
from pathlib import Path

import attrs

from endpoint.config import NOT_IN_DTLS, NOT_IN_QUOTAS, EndpointConfig
from endpoint.quotas import QuotaPolicy
from endpoint.reference import reference
from endpoint.tables.listen import Listen
from sansdtls import Limits

WRITTEN = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()


def test_the_reference_of_the_configuration_is_what_make_docs_writes():
    assert reference() == WRITTEN, "make docs puts that right"


def test_every_table_and_key_is_in_the_reference_with_a_text():
    for table in attrs.fields(EndpointConfig):
        assert f"## `[{table.name}]`" in WRITTEN
    for cls in (Listen, QuotaPolicy, Limits):
        for field in (field for field in attrs.fields(cls) if field.name not in NOT_IN_QUOTAS):
            assert re.search(rf"^- \*\*`{field.name}`\*\* \([^)].+\): \S+", WRITTEN, re.MULTILINE), field.name


def test_no_key_of_the_reference_is_without_a_text():
    assert re.findall(r"^- .*: $", WRITTEN, re.MULTILINE) == []


def test_what_is_no_key_of_dtls_is_not_in_its_table():
    table = WRITTEN.partition("## `[dtls]`")[2].partition("## `[dtls.retransmit]`")[0]
    assert "`cipher_suites`" in table
    assert not [name for name in NOT_IN_DTLS if f"**`{name}`**" in table]
