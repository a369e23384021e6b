"""Capturing what one device and this endpoint say to each other, readable: a deliberate break of secrecy.

Attacker: the network, as always (spoofs addresses, sends any number of hellos, proves some addresses of its own, claims
the identity that is captured without having its key, replays tickets that it has seen); another user of the machine; a
mistake of the operator's, such as a capture that is forgotten.

Properties wanted. (1) Nobody's secrets are written but those of the identities that were named, and no secret is ever
held, logged or written for anybody while nothing is captured. (2) Who can ask for a capture decides neither where a file
is made nor what is overwritten. (3) A capture ends by itself, by time and by size. (4) Devices notice nothing: not of a
slow or full disk, not of a capture that fails. (5) A flood of hellos neither fills memory nor the file, and does not push
an honest handshake out. (6) It cannot be done unseen.

Construction. (1) The core makes secrets into events only for handshakes that begin while an identity is captured
(``Engine.log_secrets``); the engine says whose each is, and those of others are dropped within the same call. A secret
belongs to a handshake that its Finished has proved; where a session is resumed, to the identity in the ticket that this
endpoint has sealed. A capture of an address (``--path``) has no secrets at all: behind a NAT there are many. (2) The
service makes the files, in the directory that its configuration names (by default none, and then there are no captures),
under names of its own, new (O_EXCL), no links followed (O_NOFOLLOW), for its owner (0600). A directory that others can
write is refused. (3) :data:`~endpoint.capture.limits.MAX_SECONDS` and :data:`~endpoint.capture.limits.MAX_BYTES` are the
most that can be asked for. (4) A thread writes; what it cannot take in time is dropped and counted, and an error of the
disk ends the capture alone. (5) Before the cookie has come back nothing is kept. What is kept of a handshake whose
identity is not known yet is bounded for each (:mod:`~endpoint.capture.handshakes`) and in number; the one that has been
silent longest goes first, and one that waits for its cookie's owner to go on is silent. (6) Start and end are warnings in
the log, with identities, file and the user ID of who asked.

What an operator should know. A stranger who claims the identity is recorded too (that is how a wrong key is found), so it
can fill the capture before the device comes. Where a session is resumed the secret is that of the first handshake: it opens
all that was recorded elsewhere since then. With plain PSK suites whoever has the key can read everything without any of this.

Left out: datagrams that the intake drops in a flood, as nobody looks at them; the first hello and the HelloVerifyRequest of an identity's handshake (they are in no transcript, and nobody knows
whose they are); times of the network card (the stamps are those of the service, up to a turn of 64 datagrams late);
associations whose handshake is over (their records are written, and cannot be opened: ``--rehandshake`` ends them, so that
they come back). Live traffic of other devices behind the same NAT port is not told apart after the device has left it, for
:data:`~endpoint.capture.limits.LINGER` seconds; it stays unreadable.
"""
