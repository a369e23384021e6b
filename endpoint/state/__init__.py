"""Associations that outlive the process: a file of saved associations, written behind the server's back.

The attacker records every datagram, may replay any of them, and chooses when the machine loses power; reading
and writing the state file is the operator's alone. What has to hold is that **no AEAD nonce is used twice
under one key**: with AES-CCM and AES-GCM one repetition betrays plaintext, with GCM the authentication key too.
In DTLS 1.2 the nonce is the record's sequence number, so what has to hold is: no association ever writes the
same number twice, whatever happens to the process.

Construction
    A row of the file is (W, g) of an association, sealed with the rest of its state: W is the next number
    that it would have written, g the *generation*, the count of processes that have opened the file.

    1. A process first increments the generation and makes that durable, and only then reads a row.
    2. In generation G an association goes on at W + RESERVE * (G - g) + a few.
    3. A process stops writing at W + RESERVE * (G - g + 1), where (W, g) is what the last *confirmed*
       checkpoint says. A checkpoint is confirmed when SQLite has returned from a COMMIT that is on the disk.

    So the numbers between W + RESERVE * (G - g) and W + RESERVE * (G - g + 1) belong to generation G alone. Rows
    newer than the last confirmed one (a checkpoint that was durable before we knew) only begin further on.
    Steps 2 and 3 are the core's (``sansdtls.Server(durable=True, generation=...)``), 1 and the confirming are
    done here. Nothing is promised ahead: when the disk does not take checkpoints, the numbers run out, and
    an association falls silent before it repeats itself.

What is there afterwards
    *SIGTERM.* The last checkpoint is written after the last record (:meth:`~endpoint.state.behind.WriteBehind.flush`):
    every association, exactly as it was. If the disk does not take it in time, as after SIGKILL.

    *SIGKILL, or a crash.* Every association that was there at the last confirmed checkpoint. Those whose
    handshake completed later are lost: the device has to make a new one. Those that ended later are back, and
    expire. No number repeats. **The replay window is that of the checkpoint**: what arrived after it and was
    recorded by somebody can be replayed, and each such datagram is then delivered once more, once per crash. So
    ``checkpoint_interval``, and the time that a write takes, bounds what an application may see twice; while
    the disk fails (which is reported) that grows with the failure. Applications that must not act twice need
    a number or time of their own in their messages.

    *Power loss, or a crash of the kernel.* The same, because a checkpoint is on the disk before it is confirmed.
    This needs a disk that does what it is told when it is told to flush; one that lies about that may forget
    confirmed checkpoints, which is the next case.

    *An old copy of the file is put back.* **Not protected.** Nothing in an old copy says that it is old: its
    associations go on with numbers that were used before. Do not restore it from a backup, a snapshot or
    a cloned machine: *delete* the file instead. Every device then makes one new handshake, with
    new keys, and that is all that is lost. It is best left out of backups.

    *Two processes.* The second is refused at once, for as long as the first lives (``sqlite`` says how).
    If the file is removed or replaced under a running process, that process can confirm nothing any more.

    *The same association from two places.* A blob that was taken out of the server to be thawed elsewhere is still
    in the file until the checkpoint that removes it is confirmed, and a crash would bring it back. So it is handed
    on after a ``flush`` only.

Left out
    Encryption, since the core has sealed each blob; and any cleverness against old copies: a counter that cannot
    be put back needs hardware.
"""
