"""The inference server: HTTP, batching, the prompt cache on the device, metrics."""

from server.app import Apps, create_apps
from server.process import serve
from server.settings import Settings, SettingsError

__all__ = ["Apps", "Settings", "SettingsError", "create_apps", "serve"]
