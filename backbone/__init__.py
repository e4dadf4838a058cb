"""The frozen model and the one forward: template + text + prompt → rows → scores.

Server and trainer share this package; it imports `prompt_store` and nothing else of the project.
"""

from backbone.errors import BackboneError, UnsupportedBackbone
from backbone.loader import load_backbone
from backbone.model import Backbone
from backbone.prompts import DevicePrompt
from backbone.rows import Row, RowEncoder

__all__ = [
    "Backbone",
    "BackboneError",
    "DevicePrompt",
    "Row",
    "RowEncoder",
    "UnsupportedBackbone",
    "load_backbone",
]
