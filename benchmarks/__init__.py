"""Measurements: this project's endpoint beside trio's DTLSEndpoint. Run with ``python -m benchmarks``."""
