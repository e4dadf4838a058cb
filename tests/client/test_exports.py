from __future__ import annotations

import client


def test_exports() -> None:
    assert client.__all__ == [
        "AdminClient", "Alias", "Answer", "ApiError", "Client", "ClientError", "Receipt", "Result", "TaskInfo",
        "Traffic", "UnreachableError", "Uploaded", "VersionInfo",
    ]  # fmt: skip
    assert all(hasattr(client, name) for name in client.__all__)
