"""`GET /openapi.json`: the endpoints as OpenAPI 3.1, for people and generators of clients.

https://spec.openapis.org/oas/v3.1.0
"""

import kernels

VALUE = {"type": ["number", "string", "null"]}
ROWS = {"type": "array", "minItems": 1, "items": {"oneOf": [
    {"type": "array", "items": VALUE}, {"type": "object", "additionalProperties": VALUE}]}}
NUMBERS = {"type": "array", "items": {"type": "number"}}
EXPLAIN_PARAMETERS = {
    "background": {**ROWS, "description": "Rows that are usual. Linear models need them; trees may do without."},
    "reason_codes": {"type": "integer", "minimum": 1, "description": "How many features to name, strongest first."}}
CODES = {"type": "array", "items": {
    "type": "object", "required": ["feature", "value"],
    "properties": {"feature": {"type": ["string", "integer"]}, "value": {"type": "number"}}}}
EXPLANATIONS = {"type": "array", "items": {
    "type": "object", "required": ["values", "base_value", "score"],
    "description": "Exact Shapley values of a row's features: with the base value they add up to the raw score."
                   " Of models with several scores each member is a list with an item a score.",
    "properties": {
        "values": {"type": "array", "items": {"oneOf": [{"type": "number"}, NUMBERS]}},
        "base_value": {"oneOf": [{"type": "number"}, NUMBERS]}, "score": {"oneOf": [{"type": "number"}, NUMBERS]},
        "reason_codes": {"oneOf": [CODES, {"type": "array", "items": CODES}]}}}}

SCHEMAS = {
    "PredictRequest": {
        "type": "object", "required": ["inputs"], "additionalProperties": False,
        "properties": {
            "inputs": {**ROWS, "description": "Rows: lists in the model's order, or objects by feature name, as"
                                              " /v1/models says: a number a feature, a string where it has"
                                              " categories, null for a missing value where it takes them."},
            "model": {"type": "string", "description": "Which model; the first one when left out."},
            "parameters": {"type": "object", "additionalProperties": False, "properties": {
                "return_probabilities": {"type": "boolean", "default": False},
                "explain": {"type": "boolean", "default": False}, **EXPLAIN_PARAMETERS}}},
        "example": {"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]], "parameters": {"return_probabilities": False}}},
    "PredictResponse": {
        "type": "object", "required": ["predictions", "model", "version", "latency_ms"],
        "properties": {
            "predictions": {"type": "array", "items": {"oneOf": [{"type": ["number", "string"]}, NUMBERS]},
                            "description": "A label or a number a row; of models with several outputs a list."},
            "probabilities": {"type": "array", "items": NUMBERS},
            "explanations": EXPLANATIONS,
            "model": {"type": "string"}, "version": {"type": "string"}, "latency_ms": {"type": "number"}}},
    "ExplainRequest": {
        "type": "object", "required": ["inputs"], "additionalProperties": False,
        "properties": {
            "inputs": ROWS, "model": {"type": "string"},
            "parameters": {"type": "object", "additionalProperties": False, "properties": EXPLAIN_PARAMETERS}},
        "example": {"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]],
                    "parameters": {"background": [[0.5, 0.5, 0.5, 0.5, 0.5]], "reason_codes": 3}}},
    "ExplainResponse": {
        "type": "object", "required": ["explanations", "model", "version", "latency_ms"],
        "properties": {"explanations": EXPLANATIONS, "model": {"type": "string"}, "version": {"type": "string"},
                       "latency_ms": {"type": "number"}}},
    "Health": {
        "type": "object", "required": ["status", "model_loaded", "model_name", "version"],
        "properties": {"status": {"type": "string"}, "model_loaded": {"type": "boolean"},
                       "model_name": {"type": "string"}, "version": {"type": "string"}}},
    "Ready": {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}},
    "Model": {
        "type": "object", "required": ["id", "object", "created", "owned_by", "version", "n_features", "model_type"],
        "properties": {
            "id": {"type": "string"}, "object": {"const": "model"}, "created": {"type": "integer"},
            "owned_by": {"type": "string"}, "version": {"type": "string"}, "kind": {"type": "string"},
            "model_type": {"type": "string"}, "n_features": {"type": "integer"},
            "feature_names": {"type": ["array", "null"], "items": {"type": "string"}},
            "classes": {"type": ["array", "null"]}, "n_classes": {"type": "integer"},
            "takes_missing": {"type": "boolean"}, "size_bytes": {"type": "integer"},
            "engine": {"enum": ["testigo", "onnxruntime", "mlflow process"]},
            "engine_reason": {"type": "string", "description": "Why mlflow runs the model, in a process of its own."},
            "flavor": {"type": ["string", "null"], "description": "MLflow's; null: a plain file."},
            "source": {"type": ["string", "null"], "description": "An address of MLflow's, or a file's name."},
            "explanation": {"type": ["object", "null"], "description": "null: /v1/explain refuses this model.",
                            "properties": {"needs_background": {"type": "boolean"}}},
            "features": {"type": "array", "items": {
                "type": "object", "required": ["name", "type", "takes_missing"], "properties": {
                    "name": {"type": ["string", "null"]}, "type": {"enum": ["number", "string"]},
                    "takes_missing": {"type": "boolean"},
                    "categories": {"type": "array", "items": {"type": "string"}}}}}}},
    "ModelList": {
        "type": "object", "required": ["object", "data", "name", "version", "n_features", "model_type"],
        "properties": {
            "object": {"const": "list"}, "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            "name": {"type": "string"}, "version": {"type": "string"}, "n_features": {"type": "integer"},
            "model_type": {"type": "string"}}},
    "Metrics": {
        "type": "object",
        "properties": {name: {"type": "number"} for name in
                       ("total_requests", "total_predictions", "avg_latency_ms", "uptime_seconds")}},
    "ScoringRequest": {
        "type": "object", "description": "Exactly one of dataframe_split, dataframe_records, instances and inputs.",
        "properties": {
            "dataframe_split": {"type": "object", "required": ["data"], "additionalProperties": False, "properties": {
                "columns": {"type": "array"}, "data": {"type": "array"}, "index": {"type": "array"}}},
            "dataframe_records": {"type": "array", "items": {"type": "object"}},
            "instances": {"type": "array"}, "inputs": {"type": ["array", "object"]},
            "params": {"type": "object", "description": "Parameters of the model's signature; others are ignored."}},
        "example": {"dataframe_records": [{"amount": 12.5, "hour": 3}]}},
    "ScoringResponse": {"type": "object", "required": ["predictions"],
                        "properties": {"predictions": {"type": ["array", "object"]}}},
    "ScoringError": {
        "type": "object", "required": ["error_code", "message"],
        "properties": {"error_code": {"type": "string"}, "message": {"type": "string"}}},
    "Error": {
        "type": "object", "required": ["error"],
        "properties": {"error": {
            "type": "object", "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"},
                           "param": {"type": ["string", "null"]}, "code": {"type": "string"}}}}},
}


def document(authorized: bool) -> dict:
    """The OpenAPI document; `authorized`: whether requests need a key."""
    paths = {
        "/": {"get": _operation("A page that shows the models and tries predictions", html=True)},
        "/health": {"get": _operation("Whether the process is alive", "Health", open_to_all=True)},
        "/ready": {"get": _operation("Whether requests are taken", "Ready", open_to_all=True, errors=("503",))},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _operation("This document", schema={"type": "object"})},
        "/v1/models": {"get": _operation("The served models", "ModelList")},
        "/v1/models/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": _operation("One model", "Model", errors=("404",))},
        "/v1/predict": {"post": {
            **_operation("Predict for each row", "PredictResponse", errors=("400", "404", "413", "415")),
            "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/PredictRequest"})}}},
        "/v1/explain": {"post": {
            **_operation("Explain each row's prediction", "ExplainResponse", errors=("400", "404", "413", "415")),
            "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/ExplainRequest"})}}},
        "/invocations": {"post": _invocations()},
        "/ping": {"get": _text("Whether the process is alive, as MLflow and SageMaker ask", open_to_all=True)},
        "/version": {"get": _text("The version of this server, as MLflow asks")},
    }
    components: dict = {"schemas": SCHEMAS}
    content: dict = {"openapi": "3.1.0", "info": {"title": "Testigo", "version": kernels.__version__},
                     "paths": paths, "components": components}
    if authorized:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"key": []}]
    return content


def _operation(summary: str, name: str = "", *, schema: dict | None = None, html: bool = False,
               open_to_all: bool = False, errors: tuple[str, ...] = (), error: str = "Error") -> dict:
    content = {"text/html": {"schema": {"type": "string"}}} if html else _json(
        schema or {"$ref": f"#/components/schemas/{name}"})
    responses = {"200": {"description": "Done", "content": content}}
    wrong = {"description": "What went wrong", "content": _json({"$ref": f"#/components/schemas/{error}"})}
    responses |= {status: wrong for status in (*errors, "default")}
    operation: dict = {"summary": summary, "responses": responses}
    if open_to_all:
        operation["security"] = []
    return operation


def _invocations() -> dict:
    operation = _operation("Score with the first model, by MLflow's protocol", "ScoringResponse",
                           errors=("400", "413", "415"), error="ScoringError")
    table = {"schema": {"description": "A header and rows, as pandas writes them; columns by the signature's names."}}
    content = _json({"$ref": "#/components/schemas/ScoringRequest"}) | {
        "text/csv": table, "application/vnd.apache.parquet": table}
    return operation | {"requestBody": {"required": True, "content": content}}


def _text(summary: str, open_to_all: bool = False) -> dict:
    operation = _operation(summary, open_to_all=open_to_all)
    operation["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return operation


def _metrics() -> dict:
    operation = _operation("Counters: Prometheus text, or JSON with Accept: application/json", "Metrics")
    operation["responses"]["200"]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return operation


def _json(schema: dict) -> dict:
    return {"application/json": {"schema": schema}}
