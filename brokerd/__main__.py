"""``python -m brokerd``: the same as the command ``brokerd``."""

import sys

from .cli import main

sys.exit(main())
