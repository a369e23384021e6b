"""Bytes to values and back. No state, no cryptography; raises :class:`~sansdtls.errors.DecodeError` only.

Functions that take bytes from the network end in ``_untrusted``.
"""
