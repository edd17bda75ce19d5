"""One Spark session for all tests of this room: in this process, on the loopback interface, its files in a temporary
folder.

The rule to keep: a test module that takes `spark` imports it from here and carries MARKS.
"""

import os
import shutil
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("pyspark")
if not shutil.which("java"):
    pytest.skip("Java is not installed: Spark needs it", allow_module_level=True)

from pyspark.sql import SparkSession  # noqa: E402

MARKS = [pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")]


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """Two cores; started once, about 11 s, and ended with the tests."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false", "spark.log.level": "FATAL",
        "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1", "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(tmp_path_factory.mktemp("warehouse"))}
    session = SparkSession.builder.master("local[2]").appName("tests").config(map=settings).getOrCreate()
    yield session
    session.stop()
