"""`python -m kava` is `kava`."""

import sys

from kava.cli import main

sys.exit(main())
