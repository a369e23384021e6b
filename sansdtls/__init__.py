"""Sans-IO DTLS: connection objects that consume and emit bytes, with no socket, clock or randomness."""
