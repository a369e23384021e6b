"""The tables of the configuration file, one module each; every key has its unit, default and reason there.

``[credentials]`` is ``endpoint.credentials``, ``[dtls]`` is :class:`sansdtls.ServerConfig` and ``[quotas]`` is
:class:`endpoint.quotas.QuotaPolicy`.
"""
