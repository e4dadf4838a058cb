"""A small typed client of a running promptmux server: `/classify` and the admin API. Needs httpx alone."""

from client.admin import AdminClient, Alias, Receipt, TaskInfo, Traffic, Uploaded, VersionInfo
from client.classify import Answer, Client, Result
from client.errors import ApiError, ClientError, UnreachableError

__all__ = [
    "AdminClient",
    "Alias",
    "Answer",
    "ApiError",
    "Client",
    "ClientError",
    "Receipt",
    "Result",
    "TaskInfo",
    "Traffic",
    "UnreachableError",
    "Uploaded",
    "VersionInfo",
]
