"""A server to measure against: FastAPI with the linear model in numpy, for requests of many rows.

Start: uvicorn --app-dir FOLDER fastapi_numpy:app --port PORT --no-access-log
"""

import time

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

WEIGHTS = np.array([0.5, -0.3, 0.8, -0.2, 0.4])
BIAS = 0.1


class PredictRequest(BaseModel):
    inputs: list[list[float]]


app = FastAPI()


@app.post("/v1/predict")
async def predict(request: PredictRequest) -> dict:
    start = time.perf_counter()
    predictions = (np.array(request.inputs) @ WEIGHTS + BIAS).tolist()
    return {"predictions": predictions, "model": "fraud-detector", "version": "1.0.0",
            "latency_ms": (time.perf_counter() - start) * 1e3}
