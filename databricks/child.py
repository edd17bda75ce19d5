"""What a process that serves or resolves a model does before it imports mlflow: the start that such processes share.

The rule to keep: this imports nothing but the standard library, because a model may bring packages of any name.
"""

import os
import sys
from typing import BinaryIO

# mlflow looks at these once, when it is imported: no usage telemetry, and no bars on stderr.
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true",
               "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def before_mlflow() -> None:
    """Set what mlflow must find in the environment when it is imported."""
    os.environ.update(ENVIRONMENT)


def take_stdin() -> BinaryIO:
    """This process's stdin, for requests alone: what a model's code, or a process that it starts, reads is empty."""
    requests, nothing = os.fdopen(os.dup(0), "rb"), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return requests


def take_stdout() -> BinaryIO:
    """This process's stdout, for answers alone: what a model's code prints goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "wb")
    sys.stdout.flush()
    os.dup2(2, 1)
    return answers


def one_line(error: object) -> str:
    """What an error says, as a line that is not too long."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.400}"
