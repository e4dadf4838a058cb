import io

import pytest
from rich.console import Console


@pytest.fixture
def console() -> Console:
    """Prints into memory, as into a file."""
    return Console(file=io.StringIO(), width=120)
