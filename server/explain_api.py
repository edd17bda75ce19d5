"""`POST /v1/explain`, and `explain` in the parameters of `/v1/predict`: exact Shapley values, or a refusal.

The rule to keep: what `kernels.explain` does not give exactly is refused, never made up; and a request that would take
a core for long is refused before it does.
"""

import json
import time
from typing import Any

import numpy as np

import kernels
from server.errors import ApiError
from server.models import ServedModels
from server.rows import check_parameters, finite_results, invalid, model_name, read_request, read_rows

EXPLAIN_PARAMETERS = {"background", "reason_codes"}
MOST_WORK_NS = 10_000_000_000  # of one request
MOST_VALUES = 1 << 20  # numbers in one answer


def explain(models: ServedModels, body: bytes) -> tuple[kernels.TabularModel, bytes]:
    """Answer one request body → (model, response body). Raises ApiError."""
    start = time.perf_counter()
    request = read_request(body)
    model = models.find(model_name(request))
    parameters = check_parameters(request, EXPLAIN_PARAMETERS)
    rows = read_rows(request, model, models.places[model.name])
    response = explanations(models, model, rows, parameters) | {
        "model": model.name, "version": model.version, "latency_ms": round((time.perf_counter() - start) * 1e3, 4)}
    return model, json.dumps(response).encode()


def explanations(models: ServedModels, model: kernels.TabularModel, rows: np.ndarray, parameters: dict) -> dict:
    """What explains the predictions for these rows, by `background` and `reason_codes` of the parameters."""
    explainer = models.explainer(model)
    background = None
    if "background" in parameters:
        background = _read_background(parameters["background"], models, model)
    elif explainer.needs_background:
        raise invalid("missing_background", "This model is explained against 'background', rows that are usual: its"
                                            " file does not say what is.", "parameters.background")
    n_codes = _n_codes(parameters, model)
    _check_size(explainer, len(rows), 0 if background is None else len(background))
    with finite_results(model):
        found = explainer.explain(rows, background)
    names = model.signature.feature_names or range(model.n_features)
    return {"explanations": [_one(values.T, found.base_values, scores, names, n_codes)
                             for values, scores in zip(found.values, found.scores)]}


def _read_background(inputs, models: ServedModels, model: kernels.TabularModel) -> np.ndarray:
    try:
        return read_rows({"inputs": inputs}, model, models.places[model.name])
    except ApiError as error:
        message = error.message.replace("'inputs'", "'background'")
        raise invalid(error.code, message, "parameters.background") from None


def _one(values: np.ndarray, base_values: np.ndarray, scores: np.ndarray, names, n_codes: int) -> dict:
    """One row's explanation: values (n_outputs, n_features); of a model with one score without lists of one."""
    from kernels.explain import reason_codes
    members: dict[str, list[Any]] = {
        "values": values.tolist(), "base_value": base_values.tolist(), "score": scores.tolist()}
    if n_codes:
        members["reason_codes"] = [[{"feature": names[feature], "value": value}
                                    for feature, value in reason_codes(of_output, n_codes)] for of_output in values]
    return {name: member[0] for name, member in members.items()} if len(values) == 1 else members


def _n_codes(parameters: dict, model: kernels.TabularModel) -> int:
    n_codes = parameters.get("reason_codes", 0.0)
    if "reason_codes" not in parameters:
        return 0
    if type(n_codes) is not float or not n_codes.is_integer() or not 1 <= n_codes <= model.n_features:
        raise invalid("invalid_parameters", f"'reason_codes' must be a whole number from 1 to {model.n_features}: how"
                                            " many features to name.", "parameters.reason_codes")
    return int(n_codes)


def _check_size(explainer, n_rows: int, n_background: int) -> None:
    if (explainer.work(n_rows, n_background) > MOST_WORK_NS
            or n_rows * explainer.n_features * explainer.n_outputs > MOST_VALUES):
        raise ApiError(400, "explanation_too_large", "Explaining so many rows against so many would take too long or"
                                                     " too much room: send fewer.", "inputs")
