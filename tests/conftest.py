"""What all tests of a run share: how a run is ended, a cache for what takes long to make, no clock for examples."""

import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

# A machine that stands still for a second while an example runs has found no bug.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("unhurried")

# Threads with nothing to do sleep at once, in the tests' servers too: several processes share the cores here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The folder of a run's cache, the same for all of its processes; who sets it keeps it for the next run.
CACHE = "TEST_RUN_CACHE"
_made = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # As ctrl-C does: whoever ends a run, a time limit say, ends the servers that its fixtures have started with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if CACHE not in os.environ:  # xdist's workers have it from the process that started them
        config.stash[_made] = tempfile.TemporaryDirectory(prefix="promptmux-tests-")
        os.environ[CACHE] = config.stash[_made].name


def pytest_unconfigure(config: pytest.Config) -> None:
    if _made in config.stash:
        config.stash[_made].cleanup()
