"""``make lab``."""

import sys

from tests.lab.demonstration import main

sys.exit(main())
