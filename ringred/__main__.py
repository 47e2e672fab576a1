"""``python -m ringred`` is the ``ringred`` command."""

import sys

from ringred.cli.main import main

sys.exit(main())
