"""What captures may take. Numbers with their reasons; the operator asks for less with each capture."""

MAX_CAPTURES = 4
"""At once. Each has a thread and a buffer, and a person who waits for it."""
MAX_IDENTITIES = 16
"""Of one capture. Whoever wants the whole fleet has other means."""
DEFAULT_SECONDS = 600.0
"""Long enough to walk to a device and switch it off and on."""
MAX_SECONDS = 604_800.0
"""A week: there are meters that speak once a day. A capture that is forgotten must end."""
DEFAULT_BYTES = 16_777_216
"""Of the pcapng file: some 100,000 readings."""
MAX_BYTES = 1_073_741_824
"""A gibibyte is what Wireshark still opens in comfort."""
MIN_BYTES = 4_096
"""Less does not hold one handshake with a certificate."""
BUFFER = 4_194_304
"""Bytes that wait for a slow disk, for each capture; beyond, datagrams are dropped from the file and counted."""
HELD_PATHS = 256
"""Handshakes of which the beginning is kept while nobody knows whose they are."""
HELD_DATAGRAMS = 48
"""Of one handshake: one with certificates in datagrams of 256 bytes takes 30, sent again included."""
HELD_BYTES = 49_152
"""Of one handshake. With ``HELD_PATHS`` that is 12 MiB at most."""
EXTRA_PATHS = 8
"""Addresses that records with a captured connection ID came from, beside its own; then the one heard first is forgotten."""
LINGER = 2.0
"""Seconds for which a path is still recorded after its association has ended there: the last alerts of either side."""
END_GRACE = 2.0
"""Seconds for what is in the buffer when the service ends."""
