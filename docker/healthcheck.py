"""The images' HEALTHCHECK: exit 0 when the server in this container is ready for requests, else 1 and one line.

Owns: where to ask. Must not know: promptmux, which would have to be imported every few seconds.

`/readyz`, for what acts on it (compose's depends_on, a proxy) sends requests to whoever is healthy. Swarm restarts
whoever is not: give `/healthz` as the argument there, since a restart brings no store back.
"""

import os
import sys
import urllib.error
import urllib.request


def main() -> int:
    """Ask once."""
    path = sys.argv[1] if len(sys.argv) > 1 else "/readyz"
    url = f"http://127.0.0.1:{os.environ.get('PROMPTMUX_PORT', '8000')}{path}"
    # No proxy, whatever the environment says: the server is in here.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=4) as answer:
            print(f"{url}: {answer.status}")
            return 0
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code} {error.read(500).decode(errors='replace')}")
    except OSError as error:
        print(f"{url}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
