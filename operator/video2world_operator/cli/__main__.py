"""Run v2w as ``python -m video2world_operator.cli``."""

import sys

from video2world_operator.cli.main import main

sys.exit(main())
