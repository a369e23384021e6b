"""This project's servers as they are measured: the service's engine with an echo behind it, and the
embedding API with an echo handler.

Quotas are on, so that their cost is part of the figures, and set beyond what one address could send
them here.
"""

from __future__ import annotations
