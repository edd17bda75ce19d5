"""The task of the batch job: `databricks.batch`, whose exit status a task reads only from an exception."""

import sys

from databricks.batch import main

if status := main(sys.argv[1:]):
    raise SystemExit(status)
