"""A small typed client of a running promptmux server: `/classify` and the admin API. Needs httpx alone."""

from client.admin import Alias, Event, Receipt, TaskInfo, Traffic, Uploaded, VersionInfo
from client.classify import Answer, Result, ServedTask
from client.clients import AdminClient, AsyncAdminClient, AsyncClient, Client
from client.errors import (
    ApiError,
    ClientError,
    DeadlineExceeded,
    InvalidAnswer,
    InvalidCall,
    OutcomeUnknown,
    UnreachableError,
)
from client.retry import Retries

__all__ = [
    "AdminClient",
    "Alias",
    "Answer",
    "ApiError",
    "AsyncAdminClient",
    "AsyncClient",
    "Client",
    "ClientError",
    "DeadlineExceeded",
    "Event",
    "InvalidAnswer",
    "InvalidCall",
    "OutcomeUnknown",
    "Receipt",
    "Result",
    "Retries",
    "ServedTask",
    "TaskInfo",
    "Traffic",
    "UnreachableError",
    "Uploaded",
    "VersionInfo",
]
