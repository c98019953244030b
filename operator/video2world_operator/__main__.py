"""Run the operator as ``python -m video2world_operator``."""

import sys

from video2world_operator.controller.manager import main

sys.exit(main())
