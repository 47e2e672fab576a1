"""Print where pip builds the Python module for this interpreter: `build-dir` of pyproject.toml."""

from __future__ import annotations

import sys
import sysconfig

tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
print(f"build/{tag}-{tag}-{platform}")
