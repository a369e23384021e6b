"""The record layer: epochs, protection, replay window. Knows nothing of handshake messages."""
