"""The command line: ``ringred run | bench | draw | simulate | autopsy | flight | env``. Only one module is imported."""
