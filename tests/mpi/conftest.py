"""Tests here start their own jobs, with the help of jobs.py beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # with --import-mode=importlib pytest does not
