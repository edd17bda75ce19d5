"""`POST /v1/predict` in Python: the reference for what the hot path answers.

The rule to keep: for every body that `hotpath` answers, this gives the same bytes but for `latency_ms`.
"""

import json
import time
from typing import Any

import kernels
from server.explain_api import EXPLAIN_PARAMETERS, explanations
from server.models import ServedModels
from server.rows import check_parameters, finite_results, invalid, model_name, read_request, read_rows

PARAMETERS = {"return_probabilities", "explain"}


def predict(models: ServedModels, body: bytes) -> tuple[kernels.TabularModel, int, bytes]:
    """Answer one request body → (model, number of rows, response body). Raises ApiError."""
    start = time.perf_counter()
    request = read_request(body)
    model = models.find(model_name(request))
    parameters = check_parameters(request, PARAMETERS | EXPLAIN_PARAMETERS)
    wanted, explain = (_flag(parameters, name) for name in ("return_probabilities", "explain"))
    if wanted and not model.n_classes:
        raise invalid("no_probabilities", "This model has no probabilities.", "parameters.return_probabilities")
    if not explain and not EXPLAIN_PARAMETERS.isdisjoint(parameters):
        raise invalid("invalid_parameters", "'background' and 'reason_codes' need 'explain': true.", "parameters")
    rows = read_rows(request, model, models.places[model.name])
    response: dict[str, Any] = {}
    with finite_results(model):
        response["predictions"] = model.predict(rows).tolist()
        if wanted:
            response["probabilities"] = model.predict_proba(rows).tolist()
    if explain:
        response |= explanations(models, model, rows, parameters)
    response |= {"model": model.name, "version": model.version,
                 "latency_ms": round((time.perf_counter() - start) * 1e3, 4)}
    return model, len(rows), json.dumps(response).encode()


def _flag(parameters: dict, name: str) -> bool:
    flag = parameters.get(name, False)
    if not isinstance(flag, bool):
        raise invalid("invalid_parameters", f"'{name}' must be true or false.", f"parameters.{name}")
    return flag
