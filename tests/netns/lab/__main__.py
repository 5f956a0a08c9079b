"""`python -m tests.netns.lab`: the same as `gcbpatch lab`."""

import sys

from tests.netns.lab.console import main

sys.exit(main(sys.argv[1:]))
