"""The ledger finds what it is there to find, and nothing else."""

import pytest

from sansdtls.testing import Pair
from tests.ledger import Ledger, Repeated


@pytest.fixture
def datagrams():
    """Those of a client: its whole handshake and three messages."""
    pair = Pair()
    pair.handshake()
    for number in range(3):
        pair.client.send(b"%d" % number, now=pair.now)
    pair.run_for(1)
    return [sent.data for sent in pair.network.sent_by("client")]


def test_records_are_booked_once_they_are_protected(datagrams):
    ledger = Ledger()
    assert [ledger.enter("meter", data) for data in datagrams[-4:]] == [1, 1, 1, 1]
    assert sum(ledger.enter("other", data) for data in datagrams) == 4
    assert ledger.records == 8
    assert ledger.highest("meter") == (1 << 48) + 3
    assert ledger.highest("nobody") == -1


def test_a_number_that_was_used_before_is_found_whatever_else_the_record_says(datagrams):
    ledger = Ledger(explicit_nonces=False)
    ledger.enter("meter", datagrams[-1])
    with pytest.raises(
        Repeated, match="record number 0001000000000003 was used before under the key of 'met"
    ):
        ledger.enter("meter", datagrams[-1][:-1] + b"?")
    ledger.enter("meter", datagrams[-2])
    ledger.enter("other", datagrams[-1])


def test_an_explicit_nonce_that_was_used_before_is_found_under_another_number(datagrams):
    ledger = Ledger()
    ledger.enter("meter", datagrams[-1])
    header, rest = datagrams[-1][:10], datagrams[-1][11:]
    with pytest.raises(Repeated, match="nonce 0001000000000003 was used before"):
        ledger.enter("meter", header + b"\x09" + rest)


def test_records_with_a_connection_id_are_read_too():
    ledger = Ledger()
    header = b"\x19\xfe\xfd" + b"\x00\x01\x00\x00\x00\x00\x00\x07" + b"abcd"
    record = header + b"\x00\x0a" + b"\x00\x01\x00\x00\x00\x00\x00\x07??"
    assert ledger.enter("meter", record, b"abcd") == 1
    with pytest.raises(Repeated):
        ledger.enter("meter", record, b"abcd")
    with pytest.raises(AssertionError, match="connection ID 61626364"):
        ledger.enter("other", record, b"abce")


def test_what_is_cut_off_or_no_record_is_an_error(datagrams):
    for wrong in (datagrams[-1][:-1], b"\x63" + datagrams[-1][1:]):
        with pytest.raises(AssertionError):
            Ledger().enter("meter", wrong)
