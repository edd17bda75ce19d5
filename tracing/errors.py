"""The one error of this room.

The rule to keep: the message is the single line that the user sees; it names the bad thing and what to do.
"""


class TraceError(Exception):
    """Could not run: `python -m tracing` prints the message and exits with 3."""
