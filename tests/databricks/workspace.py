"""A Databricks workspace for tests: the serving-endpoint part of its REST API on loopback, as contracts.md has it.

The rule to keep: it is as strict as the real one. Each body must survive the SDK's own dataclass unchanged, so that a
key that Databricks does not know, or a value of another type, is refused.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from databricks.sdk.service.serving import (
    EndpointCoreConfigInput, EndpointTag, ServedEntityOutput, ServingEndpointDetailed)

TOKEN, READER = "dapi-owner-of-the-tests", "dapi-reader-of-the-tests"  # the reader may not change anything
ENDPOINTS = "/api/2.0/serving-endpoints"
Predict = Callable[[str, str, Mapping[str, Any]], list]  # model, version, payload → predictions


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.body = status, {"error_code": code, "message": message}


def version_of_each_row(_model: str, version: str, payload: Mapping[str, Any]) -> list:
    """What a served model answers that only says which version it is."""
    rows = payload.get("dataframe_records") or payload.get("dataframe_split", {}).get("data") or payload.get("inputs")
    return [float(version)] * len(rows or ())


class Workspace:
    """Endpoints and what was asked; `polls` GETs after a change it is done, or has failed with `failure`."""

    def __init__(self, predict: Predict = version_of_each_row, polls: int = 2):
        self.predict, self.polls, self.failure = predict, polls, ""
        self.requests: list[tuple[str, str, Any]] = []
        self.host = ""
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._polls_left: dict[str, int] = {}
        self._queries = 0
        self._lock = threading.Lock()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the SDK use this workspace, and nothing else of the machine's configuration."""
        return {"DATABRICKS_HOST": self.host, "DATABRICKS_TOKEN": TOKEN, "DATABRICKS_CONFIG_FILE": "/dev/null"}

    @property
    def changes(self) -> list[tuple[str, str, Any]]:
        return [request for request in self.requests if request[0] != "GET" and request[1].startswith(ENDPOINTS)]

    def answer(self, method: str, path: str, body: Any, token: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The answer's body and headers; raises Refused."""
        with self._lock:
            self.requests.append((method, path, body))
            if (method, path) == ("GET", "/.well-known/databricks-config"):
                return {}, {}
            if token not in (TOKEN, READER):
                raise Refused(401, "UNAUTHENTICATED", "Credential was not sent or was of an unsupported type")
            if path == "/api/2.0/preview/scim/v2/Me":
                return {"id": "1", "userName": "tester@example.com"}, {}
            for route, (verb, pattern, handler) in ROUTES.items():
                if verb == method and (match := re.fullmatch(pattern, path)):
                    if token == READER and route not in ("show", "query"):
                        raise Refused(403, "PERMISSION_DENIED", "tester@example.com may not manage this endpoint")
                    return handler(self, body, *match.groups())
            raise Refused(404, "ENDPOINT_NOT_FOUND", f"No API found for '{method} {path}'")

    def _create(self, body):
        strict(body, {"name", "config", "tags"})
        name, config = body["name"], body["config"]
        if name in self._endpoints:
            raise Refused(400, "RESOURCE_ALREADY_EXISTS", f"Endpoint with name '{name}' already exists.")
        for tag in body.get("tags", ()):
            same(EndpointTag, tag)
        self._endpoints[name] = {"name": name, "id": f"{len(self._endpoints):032x}", "creator": "tester@example.com",
                                 "creation_timestamp": 1, "tags": list(body.get("tags", ())),
                                 "state": {"ready": "NOT_READY", "config_update": "NOT_UPDATING"}}
        try:
            return self._start_update(name, config)
        except Refused:
            del self._endpoints[name]
            raise

    def _update(self, body, name):
        endpoint = self._known(name)
        if endpoint["state"]["config_update"] == "IN_PROGRESS":
            raise Refused(409, "RESOURCE_CONFLICT", f"Endpoint '{name}' is currently being updated.")
        return self._start_update(name, body)

    def _start_update(self, name, config):
        same(EndpointCoreConfigInput, config)
        names = [entity["name"] for entity in config["served_entities"]]
        routes = config["traffic_config"]["routes"]
        if len(set(names)) < len(names) or len(names) > 10:
            raise Refused(400, "INVALID_PARAMETER_VALUE", "Served entity names must be unique, and at most 10.")
        if sum(route["traffic_percentage"] for route in routes) != 100:
            raise Refused(400, "INVALID_PARAMETER_VALUE", "The sum of all traffic percentages must be 100.")
        if not {route["served_model_name"] for route in routes} <= set(names):
            raise Refused(400, "INVALID_PARAMETER_VALUE", "A route names no served entity.")
        endpoint = self._known(name)
        entities = [entity | {"creator": "tester@example.com", "creation_timestamp": 2,
                              "min_provisioned_concurrency": 0, "max_provisioned_concurrency": 4,
                              "state": {"deployment": "DEPLOYMENT_CREATING"}} for entity in config["served_entities"]]
        endpoint["pending_config"] = {"served_entities": entities, "traffic_config": config["traffic_config"],
                                      "config_version": endpoint.get("config", {}).get("config_version", 0) + 1}
        endpoint["state"]["config_update"] = "IN_PROGRESS"
        self._polls_left[name] = self.polls
        return endpoint, {}

    def _show(self, _body, name):
        endpoint = self._known(name)
        if self._polls_left[name] > 0:
            self._polls_left[name] -= 1
        elif "pending_config" in endpoint and endpoint["state"]["config_update"] == "IN_PROGRESS":
            self._end_update(endpoint)
        elif "config" in endpoint and endpoint["state"]["config_update"] == "NOT_UPDATING":
            endpoint["state"]["ready"] = "READY"  # one GET later: what waits must look at both
        detail = {key: value for key, value in endpoint.items() if value}
        same(ServingEndpointDetailed, detail)
        return detail, {}

    def _end_update(self, endpoint):
        if self.failure:
            state = {"deployment": "DEPLOYMENT_FAILED", "deployment_state_message": self.failure}
            endpoint["pending_config"]["served_entities"][-1]["state"] = state
            endpoint["state"]["config_update"] = "UPDATE_FAILED"
            return
        endpoint["config"] = endpoint.pop("pending_config")
        for entity in endpoint["config"]["served_entities"]:
            entity["state"] = {"deployment": "DEPLOYMENT_READY"}
        endpoint["state"]["config_update"] = "NOT_UPDATING"

    def _tags(self, body, name):
        strict(body, {"add_tags", "delete_tags"})
        endpoint = self._known(name)
        for tag in body.get("add_tags", ()):
            same(EndpointTag, tag)
        tags = {tag["key"]: tag["value"] for tag in endpoint["tags"]}
        tags |= {tag["key"]: tag["value"] for tag in body.get("add_tags", ())}
        endpoint["tags"] = [{"key": key, "value": value} for key, value in tags.items()
                            if key not in body.get("delete_tags", ())]
        return {"tags": endpoint["tags"]}, {}

    def _delete(self, _body, name):
        self._known(name)
        del self._endpoints[name]
        return {}, {}

    def _query(self, body, name, entity_name=None):
        config = self._known(name).get("config")
        if config is None:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Endpoint '{name}' is not ready.")
        entities = {entity["name"]: ServedEntityOutput.from_dict(entity) for entity in config["served_entities"]}
        if entity_name is None:  # 37 and 100 have no common factor: any 100 queries in a row are shared exactly
            ticket, self._queries = self._queries * 37 % 100, self._queries + 1
            for route in config["traffic_config"]["routes"]:
                entity_name, ticket = route["served_model_name"], ticket - route["traffic_percentage"]
                if ticket < 0:
                    break
        if entity_name not in entities:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", "Served entity does not exist.")
        entity = entities[entity_name]
        return ({"predictions": self.predict(entity.entity_name, entity.entity_version, body)},
                {"served-model-name": entity_name})

    def _known(self, name):
        if name not in self._endpoints:
            raise Refused(404, "RESOURCE_DOES_NOT_EXIST", f"Endpoint with name '{name}' does not exist.")
        return self._endpoints[name]


ROUTES: dict[str, tuple[str, str, Callable]] = {
    "create": ("POST", ENDPOINTS, Workspace._create),
    "show": ("GET", f"{ENDPOINTS}/([^/]+)", Workspace._show),
    "delete": ("DELETE", f"{ENDPOINTS}/([^/]+)", Workspace._delete),
    "update": ("PUT", f"{ENDPOINTS}/([^/]+)/config", Workspace._update),
    "tags": ("PATCH", f"{ENDPOINTS}/([^/]+)/tags", Workspace._tags),
    "query": ("POST", "/serving-endpoints/([^/]+)(?:/served-models/([^/]+))?/invocations", Workspace._query),
}


def same(dataclass: Any, body: Any) -> None:
    """Refuse a body that the SDK's dataclass does not hold as it is."""
    if dataclass.from_dict(body).as_dict() != body:
        raise Refused(400, "MALFORMED_REQUEST", f"Not a {dataclass.__name__}: {json.dumps(body)}")


def strict(body: Any, keys: set[str]) -> None:
    if not isinstance(body, dict) or not body.keys() <= keys:
        raise Refused(400, "MALFORMED_REQUEST", f"Expected only the keys {sorted(keys)}")


@contextmanager
def workspace(predict: Predict = version_of_each_row, polls: int = 2) -> Iterator[Workspace]:
    """A workspace on a free port of loopback."""
    served = Workspace(predict, polls)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # head and body in one packet

        def handle_any(self):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers = 200, {}
            try:
                token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
                body, headers = served.answer(self.command, self.path, json.loads(data) if data else None, token)
            except Refused as refused:
                status, body = refused.status, refused.body
            data = json.dumps(body).encode()
            self.send_response(status)
            for header in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.host = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
