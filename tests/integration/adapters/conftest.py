"""What must be said before frameworks are imported."""

import os

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read on import: tests report nothing to anyone
