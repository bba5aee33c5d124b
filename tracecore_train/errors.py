"""The errors a user of this package can meet."""


class TracecoreError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(TracecoreError, ValueError):
    """A setting is unknown or has a bad value; the message names it and what is accepted."""


class WireError(TracecoreError, ValueError):
    """Bytes or columns from outside are not what the wire format allows."""


class HookUnavailableError(TracecoreError):
    """A hook the user asked for by name cannot work here; the message says why."""
