import subprocess
import sys

import server


def test_the_public_names() -> None:
    assert sorted(server.__all__) == ["Apps", "Settings", "SettingsError", "create_apps", "serve"]
    assert all(hasattr(server, name) for name in server.__all__)


def test_importing_the_server_imports_no_torch() -> None:
    """`promptmux serve --help` and a port that is taken must answer at once."""
    code = "import sys, server; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
