"""`promptmux serve` with a backbone that needs no torch: starts in a second, misbehaves when told to.

Run as `python -m tests.integration.fake_server --port 0 …`.
"""

import sys

from server import Settings, SettingsError, serve
from tests.server.fakes import FakeBackbone


def main() -> int:
    try:
        settings = Settings.load(sys.argv[1:])
    except SettingsError as error:
        print(f"promptmux serve: {error}", file=sys.stderr)
        return 2
    return serve(settings, load_backbone=FakeBackbone)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
