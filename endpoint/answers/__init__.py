"""What the admin socket answers about the service and its devices.

=================== ===================================================================================
``parts``           what answers are made of
``status``          the service as a whole
``identities``      who may connect, with which keys, and who is there; page by page
``doctor``          one identity, or one address: why its last handshakes failed, and what to do
``likeness``        names that are nearly the same
=================== ===================================================================================

Answers are JSON and their shape is documented in ``docs/status.md``: members are added, never renamed. Identities are
shown escaped (``endpoint.text``), keys by their fingerprint only, times as UTC text.
"""
