"""``python -m video2world_operator`` runs the operator; see :mod:`.serve`."""

import sys

from .serve import main

sys.exit(main())
