"""The key store in memory."""

import pytest

from endpoint.keystore import DictKeyStore


def test_one_key_may_be_given_bare_and_two_as_a_list_current_first():
    store = DictKeyStore({b"a": b"key-a", b"b": [b"current", b"next"]})
    assert list(store.lookup(b"a")) == [b"key-a"]
    assert list(store.lookup(b"b")) == [b"current", b"next"]


def test_an_unknown_identity_has_no_keys():
    assert not DictKeyStore().lookup(b"who")


def test_identities_are_compared_byte_by_byte_nul_included():
    store = DictKeyStore({b"a\0b": b"key"})
    assert not store.lookup(b"a")
    assert list(store.lookup(b"a\0b")) == [b"key"]


def test_keys_can_be_set_and_removed_later():
    store = DictKeyStore()
    store.set(b"a", b"key")
    assert len(store) == 1
    store.remove(b"a")
    store.remove(b"never there")
    assert len(store) == 0


@pytest.mark.parametrize("keys", [(), (b"",), (b"1", b""), (b"1", b"2", b"3")])
def test_no_key_an_empty_one_or_a_third_is_refused_and_nothing_changes(keys):
    store = DictKeyStore({b"a": b"key"})
    with pytest.raises(ValueError, match="b'a'"):
        store.set(b"a", *keys)
    assert list(store.lookup(b"a")) == [b"key"]


def test_neither_keys_nor_identities_show_in_its_repr():
    assert repr(DictKeyStore({b"meter": b"s3cret"})) == "<DictKeyStore with 1 identities>"
