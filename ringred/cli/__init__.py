"""The command line: ``ringred run | bench | draw | env``. Subcommands are imported only when chosen."""
