"""What can go wrong with a backbone.

    BackboneError               500  backbone_error        cannot be loaded or read
     └ UnsupportedBackbone      500  unsupported_backbone  loads, but cannot do what is asked of it

Errors about a prompt (wrong shapes, other fingerprint) are the store's: `prompt_store.errors`.
"""

from __future__ import annotations


class BackboneError(Exception):
    """The model cannot be loaded or read; the message says what to do."""

    status = 500
    code = "backbone_error"


class UnsupportedBackbone(BackboneError):
    """The model's family cannot run packed rows, or lacks the part that was asked for."""

    code = "unsupported_backbone"


class NativeUnavailable(BackboneError):
    """The compiled attention cannot be had here; the message says why."""
