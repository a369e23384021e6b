"""Quotas: how much of a shared endpoint one peer may use.

Attacker
    Has real addresses (it answered our cookie) and perhaps the keys of some devices, and wants the
    endpoint to have no time or memory left for the others. Or it is no attacker at all: a device
    with a bug that reboots, handshakes or sends in a loop, or a whole fleet after a power failure.
    Whoever forges source addresses never gets here: nothing is counted for an address before a cookie
    came back from it, nor for an identity before somebody has proved it, so nobody can spend another's
    quota by naming it.

What is limited, and whose::

                    prefix                       identity                        association                    everybody
    handshakes/s    handshakes_per_second        identity_handshakes_per_second  (a)                            total_handshakes_per_second
    under way       half_open_per_prefix         (b)                             (a)                            Limits.max_half_open
    live            associations_per_prefix      associations_per_identity       (a)                            Limits.max_associations
    frozen          (c)                          associations_per_identity       (a)                            Limits.max_frozen
    datagrams/s     prefix_datagrams_per_second  identity_datagrams_per_second   datagrams_per_second           total_datagrams_per_second
    bytes/s         prefix_bytes_per_second      identity_bytes_per_second       bytes_per_second               total_bytes_per_second
    fragments       half_open_per_prefix         (b)                             Limits.max_reassembly_size     Limits.max_total_reassembly_size
    not yet read    (d)                          (d)                             waiting_bytes_per_association  total_waiting_bytes
    not yet handled (e)                          (b)                             (e)                            queued_datagrams, queued_bytes
    time            (e)                          (b)                             (e)                            handshake_share

    (a) An association has one handshake, and is one.
    (b) Until the handshake is over, its identity is a claim. The memory of a claim is the prefix's.
    (c) While it sleeps, an address says nothing: the device will come back from another.
    (d) The sum over its associations, which are limited in number. No number of it would be easier to choose.
    (e) What waits for time has proved nothing yet, so nothing is counted against anybody; sources take turns (``endpoint.intake``).

Properties
    1. A source is a *prefix*: a whole IPv4 address, and for IPv6 the /56 that one customer gets,
       because within it addresses cost nothing. An IPv4-mapped IPv6 address counts as IPv4, so a
       dual-stack socket gives nobody a second bucket. For networks that the operator names, such as
       those of a carrier's NAT, a prefix's limits do not hold, or with other numbers (``networks``).
    2. Handshakes (the most expensive thing a peer can cause) are paid from token buckets: of the prefix and of
       everybody when they begin, of the identity when they have succeeded. What is paid when it begins is
       paid all or nothing: one that another limit refuses takes no token.
    3. Handshakes under way and live associations of a prefix are counted exactly; each
       gives its slot back on every way it can end. A device that rebooted may always replace
       its own association: the one that will go is not held against the one that comes. (If it stays after
       all, because it is another device's and has a connection ID, the one that came has to go.) An
       association that moves takes its slot along, and one that wakes up gets one, be the prefix full or not:
       what was admitted is not refused later. A frozen one needs none; ``Limits.max_frozen`` bounds those.
    4. Live and frozen associations of one identity are limited too, where a key has leaked or a device comes
       back from a new port each time. By default the one that has been silent longest gives way: the
       newcomer has just proved the key, and refusing it would lock out a rebooted device until the
       idle timeout. Who has the key can still keep the device out, by handshaking faster; that a
       stolen key has to be replaced, no quota changes.
    5. Data are limited in datagrams and in bytes per second, after decryption (only then it is known whose
       they are) and before delivery, so that a forwarder sees no flood. A datagram is paid for by its
       association, its prefix, its identity and everybody at once, or by none of them. A peer that has moved without
       proving it (an authentic record came from a new address, which its sender may have forged) goes on
       paying from where it was: or who has one key could use up what a stranger's prefix may send. Only its
       slot goes along.
    6. No prefix shuts out the others by using up what all share. While more than ``fair_reserve`` of it is left,
       whoever comes first is served. Of the rest a prefix gets something only while it has had less of late
       than is left (times ``share`` in a network that stands for many). So those who ask for most are
       stopped first, all at the same level, however much they ask for, and one who has had nothing finds
       something left, or is the next to get something. Nobody is stopped while
       there is no shortage, and one alone gets everything. This is how switches share a buffer among
       their ports (Choudhury and Hahne, "Dynamic queue length thresholds", 1998). ``buckets.FairBucket`` has the
       details. ``Limits.max_half_open`` is shared in the same way, with handshakes under way for tokens; live
       associations are not: those of a full table that rest are frozen for a newcomer, whoever has most of them.
    7. Refusal is silent, which gives a flood no answer to amplify. It is counted by reason, the name of the field that
       said no, and those who were refused most of late are known by name (``offenders``).
    8. Every table is bounded. Prefixes and identities without an association are remembered for the
       ``tracked_prefixes`` and ``tracked_identities`` used last. A bucket that
       has filled up again equals none, so forgetting is exact unless more than that were
       active within the time in which a burst is refilled; the forgotten ones then get a new
       burst. Counts are never forgotten; ``Limits`` bounds how many there can be.

Left out, and why
    The stateless answers before the cookie: they are ``Server``'s, cost about 60 µs each, and only a packet filter in front
    makes them cheaper. A hello in fragments until it is whole, and the fragments of all handshakes together: the core bounds them
    for everybody, and sees to it that whoever holds most makes room (``Limits.max_hello_reassemblies``,
    ``Limits.max_total_reassembly_size``). What we send: an echo is no larger than its question, and other programs
    know themselves what they send. When a peer moved without proof and then froze, the thawed association pays from where it
    was last: how an address was proved does not outlive freezing.
"""

from endpoint.quotas.buckets import DataBudget, FairBucket, TokenBucket, WaitingData
from endpoint.quotas.networks import NetworkQuota
from endpoint.quotas.offenders import Offenders
from endpoint.quotas.policy import IdentityOverflow, QuotaPolicy
from endpoint.quotas.prefixes import Prefix, prefix_text
from endpoint.quotas.quotas import Quotas

__all__ = [
    "DataBudget",
    "FairBucket",
    "IdentityOverflow",
    "NetworkQuota",
    "Offenders",
    "Prefix",
    "QuotaPolicy",
    "Quotas",
    "TokenBucket",
    "WaitingData",
    "prefix_text",
]
