"""The bench: the forward and the server against the machine's own rate and against the peers, in one run."""
