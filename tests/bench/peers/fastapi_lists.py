"""A server to measure against: FastAPI as the course's readers would write it, the linear model in plain Python.

Start: uvicorn --app-dir FOLDER fastapi_lists:app --port PORT --no-access-log
"""

import time

from fastapi import FastAPI
from pydantic import BaseModel

WEIGHTS = [0.5, -0.3, 0.8, -0.2, 0.4]
BIAS = 0.1


class PredictRequest(BaseModel):
    inputs: list[list[float]]


app = FastAPI()


@app.post("/v1/predict")
async def predict(request: PredictRequest) -> dict:
    start = time.perf_counter()
    predictions = [sum(w * x for w, x in zip(WEIGHTS, row)) + BIAS for row in request.inputs]
    return {"predictions": predictions, "model": "fraud-detector", "version": "1.0.0",
            "latency_ms": (time.perf_counter() - start) * 1e3}
