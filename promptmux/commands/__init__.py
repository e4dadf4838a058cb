"""One module for each subcommand; `run` is the command, its parameters are the flags."""
