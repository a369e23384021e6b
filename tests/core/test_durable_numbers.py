"""No nonce is used twice under one key: across freeze, thaw, crashes and whatever is loaded twice.

The ledger is kept where the ciphers are called, so it sees everything that anybody seals.
"""

import pytest
from hypothesis import settings

from sansdtls import SnapshotError
from tests.core.durable_lives import RESERVE, SILENCE, AnyOrder, Copy, lives
from tests.core.nonce_ledger import NonceRepeated

METER = b"meter0"
both_kinds = pytest.mark.parametrize("connection_ids", [True, False], ids=["by ID", "by path"])


# --- the ledger itself ---


@both_kinds
def test_the_ledger_sees_an_association_that_is_thawed_twice(connection_ids):
    """Behind the server's back, from a copy: what all the rest is there to prevent."""
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.freeze_out(METER)
        (copy,) = one.out
        one.load(copy, live=True)
        one.server_sends(METER, 1)
        one.new_server()
        one.load(copy, live=True)
        with pytest.raises(NonceRepeated):
            one.server_sends(METER, 1)


def test_the_ledger_sees_both_directions_and_the_handshake():
    with lives(connection_ids=True) as one:
        one.connect(METER)
        assert sorted(map(len, one.ledger.used.values())) == [1, 1]  # Finished
        one.client_sends(METER, 3)
        one.server_sends(METER, 5)
        assert sorted(map(len, one.ledger.used.values())) == [4, 6]


# --- one by one ---


@both_kinds
def test_a_crash_right_after_a_confirmed_checkpoint_and_all_numbers_that_it_reserved(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        for _ in range(5):
            assert 0 < one.server_sends(METER, 10 * RESERVE) <= RESERVE
            one.crash()
            assert one.heard(METER)


@both_kinds
def test_an_association_that_no_checkpoint_was_made_of_may_send_and_is_gone_after_a_crash(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        assert one.server_sends(METER, 3 * RESERVE) == 3 * RESERVE
        one.crash()
        assert not one.heard(METER)
        one.connect(METER)
        assert one.heard(METER)


@both_kinds
def test_a_checkpoint_that_was_made_and_not_confirmed_reserves_nothing(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.server_sends(METER, 2 * RESERVE)
        one.take()
        assert one.server_sends(METER, 3 * RESERVE) == RESERVE
        one.write()
        assert one.server_sends(METER, 1) == 0
        one.crash()
        assert one.heard(METER)
        assert one.server_sends(METER, 3 * RESERVE) > 0


@both_kinds
def test_the_numbers_are_asked_for_when_half_of_them_are_used(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        for _ in range(10):
            due = 0
            while not one.server.checkpoint_due:
                assert one.server_sends(METER, 1)
                due += 1
            assert due <= RESERVE // 2 + 1
            one.flush()
            assert not one.server.checkpoint_due


@both_kinds
def test_frozen_and_woken_associations_stay_below_what_the_disk_says(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        total = 0
        for _ in range(20):
            total += one.server_sends(METER, 5)
            one.fleet.run_for(SILENCE)
            assert one.server.frozen == 1
            one.client_sends(METER)
        assert total <= RESERVE
        one.crash()
        assert one.heard(METER)
        assert one.server_sends(METER, 5) == 5


@both_kinds
def test_an_association_that_was_taken_out_and_put_back_stays_below_what_the_disk_says(connection_ids):
    """Its row is on the disk until the checkpoint that removes it; a crash brings it back from there."""
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        for live in (True, False, True):
            one.server_sends(METER, RESERVE // 2)
            one.freeze_out(METER)
            one.load(one.out.pop(), live=live)
            one.client_sends(METER)
        one.server_sends(METER, 3 * RESERVE)
        one.crash()
        assert one.heard(METER)
        one.server_sends(METER, 3 * RESERVE)


@both_kinds
def test_what_is_loaded_twice_is_refused(connection_ids):
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        old = Copy(*next((blob, b"") for blob in one.disk.values()))
        one.server_sends(METER, 3)
        one.freeze_out(METER)
        (copy,) = one.out
        for live in (True, False):
            with pytest.raises(SnapshotError, match="loaded before"):
                one.load(old, live=live)
        one.load(copy, live=True)
        for each in (copy, old):
            for live in (True, False):
                with pytest.raises(SnapshotError):
                    one.load(each, live=live)
        one.server_sends(METER, 3)
        one.clients[METER].connection.close(now=one.fleet.now)
        one.fleet.run_for(1.0)
        assert len(one.server) == one.server.frozen == 0
        for each in (copy, old):
            for live in (True, False):
                with pytest.raises(SnapshotError, match="loaded before"):
                    one.load(each, live=live)


@both_kinds
@pytest.mark.parametrize("asleep", [True, False])
def test_of_an_association_that_has_ended_no_copy_is_taken(connection_ids, asleep):
    """Also when the first record that wakes it is the one that ends it."""
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        one.flush()
        (row,) = one.disk.values()
        if asleep:
            one.fleet.run_for(SILENCE)
            assert one.server.frozen == 1
        one.clients[METER].connection.close(now=one.fleet.now)
        one.fleet.run_for(1.0)
        assert len(one.server) == one.server.frozen == 0
        for live in (True, False):
            with pytest.raises(SnapshotError, match="loaded before"):
                one.load(Copy(row, b""), live=live)


@both_kinds
@pytest.mark.parametrize("blobs_first", [True, False])
def test_a_graceful_stop_that_hands_blobs_over_beside_the_file(connection_ids, blobs_first):
    """The row and the blob of one association are both there; whichever comes second is refused."""
    with lives(connection_ids=connection_ids) as one:
        one.connect(METER)
        for _ in range(4):
            one.server_sends(METER, RESERVE)
            one.flush()
            blobs = list(one.server.freeze_all(now=one.fleet.now))
            rows = dict(one.begin_generation())
            one.new_server()
            assert len(blobs) == len(rows) == 1
            first, second = (blobs, rows.values()) if blobs_first else (rows.values(), blobs)
            for blob in first:
                one.server.restore(blob, now=one.fleet.now, saved=not blobs_first)
            for blob in second:
                with pytest.raises(SnapshotError):
                    one.server.restore(blob, now=one.fleet.now)
            assert one.heard(METER)
            one.server_sends(METER, 2 * RESERVE)
            one.crash()
            assert one.heard(METER)


@both_kinds
def test_with_the_real_reserve(connection_ids):
    with lives(connection_ids=connection_ids, reserve=1024) as one:
        one.connect(METER)
        one.flush()
        for _ in range(3):
            assert 1000 <= one.server_sends(METER, 3000) <= 1024
            one.crash()
            assert one.heard(METER)


# --- in any order ---

TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=40)
