"""The cryptography of DTLS 1.2, put together from ``cryptography``'s primitives. No cipher is written here."""
