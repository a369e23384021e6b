"""Figures for Prometheus: what there is, under which name, and how it is fetched.

=================== ===================================================================================
``table``           every metric: name, type, meaning, and where in the statistics it stands; its parts are
                    ``of_devices`` and ``of_parts``
``metric``          what a metric is
``collector``       statistics into metrics, each time when somebody asks
``server``          /metrics, /healthz and /readyz over HTTP
``reference``       ``docs/metrics.md``
=================== ===================================================================================

Nothing here counts; ``statistics()`` of the engine, the stores and the forwarders do. Labels are words of this program
or of its configuration (causes, quotas, names of sinks, our own addresses), never identities or addresses of peers: a
stranger must not be able to make a new time series, and a scrape must not tell who the devices are.
"""
