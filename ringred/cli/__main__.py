"""``python -m ringred.cli``: the same as the ``ringred`` command."""

import sys

from ringred.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
