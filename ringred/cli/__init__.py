"""The command line: ``ringred run | bench | draw | autopsy | flight | env``. Only the chosen one is imported."""
