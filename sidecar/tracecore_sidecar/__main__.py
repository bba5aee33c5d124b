"""``python -m tracecore_sidecar`` is the ``tracecore`` command."""

import sys

from tracecore_sidecar.cli import main

sys.exit(main())
