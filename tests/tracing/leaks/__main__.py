"""`python -m tests.tracing.leaks NAME`: one leak.

Exit status 77 outside a namespace of its own, 78 where it cannot run.
"""

import sys

import tests.tracing.leaks as leaks
from tests.tracing.leaks import everything  # noqa: F401  (fills the table)

if __name__ == "__main__":
    leaks.refuse_outside()
    leaks.running = sys.argv[1]
    leaks.LEAKS[leaks.running].run()
