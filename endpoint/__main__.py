"""``python -m endpoint`` is ``dtls-endpoint``."""

import sys

from endpoint.cli import main

sys.exit(main())
