#!/usr/bin/env python3
"""Run ``kubectl v2w`` with the packages next to this file; the command in krew's archives.

Any Python 3 can read it, so that one that is too old says so.
"""

import os
import sys

OLDEST, NEWEST = (3, 11), (3, 14)  # the archive has compiled parts for these and those between

if __name__ == "__main__":
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        versions = ["{}.{}".format(*one) for one in (OLDEST, NEWEST, sys.version_info[:2])]
        message = "error: kubectl v2w needs Python {} to {} as python3 on the PATH, which is {}"
        sys.exit(message.format(*versions))
    here = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
    sys.path.insert(0, os.path.join(here, "lib"))  # noqa: PTH118

    from video2world_operator.cli.main import main

    sys.exit(main())
