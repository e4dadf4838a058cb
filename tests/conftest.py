import signal


def pytest_configure() -> None:
    # As ctrl-C does: whoever ends a run, a time limit say, ends the servers that its fixtures have started with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
