"""How Amazon SageMaker starts a container that serves: argv `serve`, a port, and a folder with the model.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
"""

import os
from pathlib import Path

from kernels import ModelError

COMMAND, FOLDER = "serve", "/opt/ml/model"
PORT, MODEL = "SAGEMAKER_BIND_TO_PORT", "SM_MODEL_DIR"  # of the environment: the port, and the folder where not FOLDER


def model(folder: Path) -> str:
    """What to serve of a folder: itself where it holds an MLmodel, else the one file in it. Raises ModelError."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ModelError(f"{folder}: {error.strerror}") from None
    if "MLmodel" in names:
        return str(folder)
    if len(names) != 1:
        raise ModelError(f"{folder}: expected MLflow's MLmodel, or one model file, found {len(names)} files")
    return str(folder / names[0])
