"""`GET /openapi.json`: the endpoints as OpenAPI 3.1, for people and generators of clients.

https://spec.openapis.org/oas/v3.1.0
"""

import kernels

NUMBER_ROWS = {"type": "array", "minItems": 1, "items": {"oneOf": [
    {"type": "array", "items": {"type": ["number", "null"]}},
    {"type": "object", "additionalProperties": {"type": ["number", "null"]}}]}}

SCHEMAS = {
    "PredictRequest": {
        "type": "object", "required": ["inputs"], "additionalProperties": False,
        "properties": {
            "inputs": {**NUMBER_ROWS, "description": "Rows of numbers in the model's order, or objects by feature name;"
                                                     " null is a missing value where the model takes them."},
            "model": {"type": "string", "description": "Which model; the first one when left out."},
            "parameters": {"type": "object", "additionalProperties": False, "properties": {
                "return_probabilities": {"type": "boolean", "default": False}}}},
        "example": {"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]], "parameters": {"return_probabilities": False}}},
    "PredictResponse": {
        "type": "object", "required": ["predictions", "model", "version", "latency_ms"],
        "properties": {
            "predictions": {"type": "array", "items": {"type": ["number", "string"]}},
            "probabilities": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            "model": {"type": "string"}, "version": {"type": "string"}, "latency_ms": {"type": "number"}}},
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
            "takes_missing": {"type": "boolean"}, "size_bytes": {"type": "integer"}}},
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
    }
    components: dict = {"schemas": SCHEMAS}
    content: dict = {"openapi": "3.1.0", "info": {"title": "Testigo", "version": kernels.__version__},
                     "paths": paths, "components": components}
    if authorized:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        content["security"] = [{"key": []}]
    return content


def _operation(summary: str, name: str = "", *, schema: dict | None = None, html: bool = False,
               open_to_all: bool = False, errors: tuple[str, ...] = ()) -> dict:
    content = {"text/html": {"schema": {"type": "string"}}} if html else _json(
        schema or {"$ref": f"#/components/schemas/{name}"})
    responses = {"200": {"description": "Done", "content": content}}
    for status in (*errors, "default"):
        responses[status] = {"description": "What went wrong", "content": _json({"$ref": "#/components/schemas/Error"})}
    operation: dict = {"summary": summary, "responses": responses}
    if open_to_all:
        operation["security"] = []
    return operation


def _metrics() -> dict:
    operation = _operation("Counters: Prometheus text, or JSON with Accept: application/json", "Metrics")
    operation["responses"]["200"]["content"]["text/plain"] = {"schema": {"type": "string"}}
    return operation


def _json(schema: dict) -> dict:
    return {"application/json": {"schema": schema}}
