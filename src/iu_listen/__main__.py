"""python -m iu_listen."""

import sys

from iu_listen.cli import main

sys.exit(main())
