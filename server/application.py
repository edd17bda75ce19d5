"""Which request goes where: the route table, and what is checked before any route is asked.

The rule to keep: a new endpoint is one row of `ROUTES`, one function and one entry of `openapi`; it touches no sockets.
"""

import hmac
import json
from collections.abc import Callable
from importlib.resources import files
from urllib.parse import unquote

import kernels
from server import explain_api, openapi, predict_api, scoring_api
from server.access_log import AccessLog
from server.connection import Request, Response
from server.errors import SCORING_PATHS, ApiError
from server.http1 import RequestHead
from server.metrics import Metrics
from server.models import ServedModels

OPEN_PATHS = {"/health", "/ready", "/ping"}  # answered without a key: whoever watches the server may not have one


class Application:
    """Answers requests; knows nothing of sockets. All of it may run in many threads at once."""

    def __init__(self, models: ServedModels, metrics: Metrics, access_log: AccessLog, *, keys: tuple[str, ...] = (),
                 allowed_hosts: frozenset[str] | None = None, cors_origin: str | None = None):
        self.models, self.metrics, self.access_log = models, metrics, access_log
        self.keys = tuple(key.encode() for key in keys)
        self.allowed_hosts = allowed_hosts  # None: any
        self.cors_origin = cors_origin
        self.page = files("server").joinpath("page.html").read_bytes()
        self.ready = False

    def check(self, head: RequestHead) -> ApiError | None:
        """Why a request is refused by its head alone, if it is: host, key, route, query, method, content type."""
        if self.allowed_hosts is not None and host_name(head.host) not in self.allowed_hosts:
            return ApiError(421, "host_not_allowed", "This server does not answer for the host of this request"
                                                     " (see --allowed-hosts).")
        if self.is_preflight(head):
            return None
        if self.keys and head.path not in OPEN_PATHS and not self.is_authorized(head):
            return ApiError(401, "invalid_api_key", "The request needs a valid key: 'Authorization: Bearer KEY'.",
                            headers=(("WWW-Authenticate", "Bearer"),))
        route, _ = find_route(head.path)
        if not route:
            return ApiError(404, "not_found", "There is nothing at this path; GET /openapi.json lists the endpoints.")
        if head.method not in route and not (head.method == "HEAD" and "GET" in route):
            allowed = ", ".join(sorted(set(route) | ({"HEAD"} if "GET" in route else set())))
            return ApiError(405, "method_not_allowed", f"This path takes {allowed}.", headers=(("Allow", allowed),))
        if head.query or "?" in head.target:
            return ApiError(400, "unknown_query_parameter", "This path takes no query parameters.")
        if head.method == "POST" and (refused := self.wrong_content_type(head)):
            return refused
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            return ApiError(415, "unsupported_content_encoding", "The body must not be compressed.")
        return None

    def wrong_content_type(self, head: RequestHead) -> ApiError | None:
        content_type = head.headers.get("content-type")
        if head.path in SCORING_PATHS:
            try:
                scoring_api.media_type(content_type)
            except ApiError as error:
                return error
        elif not is_json(content_type):
            return ApiError(415, "unsupported_media_type", "The body must be application/json, in UTF-8.")
        return None

    def answer(self, request: Request) -> Response:
        """Answer a request that `check` let pass."""
        head = request.head
        if self.is_preflight(head):
            return Response(204, headers=(("Access-Control-Allow-Methods", "GET, POST, HEAD"),
                                          ("Access-Control-Allow-Headers", "authorization, content-type, x-request-id"),
                                          ("Access-Control-Max-Age", "600")))
        route, argument = find_route(head.path)
        function = route.get(head.method) or route["GET"]
        try:
            return function(self, request, argument)
        except ApiError as error:
            return Response.of_error(error, head.path)
        except Exception:  # the one place where a bug becomes a response: the server must survive it
            self.access_log.exception(head)
            return Response.of_error(ApiError(500, "internal_error", "The server failed to answer; its log says more."),
                                     head.path)

    def is_authorized(self, head: RequestHead) -> bool:
        scheme, _, key = head.headers.get("authorization", "").partition(" ")
        given = key.strip(" \t").encode("latin-1")
        found = [hmac.compare_digest(given, expected) for expected in self.keys]
        return scheme.lower() == "bearer" and any(found)

    def is_preflight(self, head: RequestHead) -> bool:
        return (self.cors_origin is not None and head.method == "OPTIONS"
                and "access-control-request-method" in head.headers)

    def cors_headers(self, head: RequestHead) -> list[tuple[str, str]]:
        return self.cors_headers_for(head.headers.get("origin"))

    def cors_headers_for(self, origin: str | None) -> list[tuple[str, str]]:
        if self.cors_origin is None:
            return []
        allowed = [("Access-Control-Allow-Origin", self.cors_origin)]
        if self.cors_origin == "*":
            return allowed
        return [("Vary", "Origin")] + (allowed if origin == self.cors_origin else [])

    def note(self, client: tuple, head: RequestHead | None, response: Response, seconds: float) -> None:
        route = route_name(head.path) if head else "malformed"
        self.metrics.count(route, response.status, seconds, response.model, response.rows)
        self.access_log.request(client, head, response.status, seconds)


# --- checks -------------------------------------------------------------------------------------

def host_name(host: str) -> str:
    """A Host value without its port, in lower case."""
    return (host[:host.index("]") + 1] if host.startswith("[") else host.partition(":")[0]).lower()


def is_json(content_type: str | None) -> bool:
    """Whether a Content-Type is JSON in UTF-8; a missing one is taken as that."""
    if content_type is None:
        return True
    kind, _, parameters = content_type.partition(";")
    given = parameters.strip(" \t").lower().replace('"', "")
    return kind.strip(" \t").lower() == "application/json" and given in ("", "charset=utf-8")


# --- routes -------------------------------------------------------------------------------------

Handler = Callable[[Application, Request, str], Response]


def json_response(content) -> Response:
    return Response(200, json.dumps(content).encode())


def health(app: Application, request: Request, argument: str) -> Response:
    model = app.models.default
    return json_response({"status": "healthy", "model_loaded": True, "model_name": model.name,
                          "version": model.version})


def ready(app: Application, request: Request, argument: str) -> Response:
    if not app.ready:
        raise ApiError(503, "not_ready", "The server is shutting down.", headers=(("Retry-After", "1"),))
    return json_response({"status": "ready"})


def list_models(app: Application, request: Request, argument: str) -> Response:
    return json_response(app.models.listing())


def one_model(app: Application, request: Request, argument: str) -> Response:
    return json_response(app.models.describe(app.models.find(unquote(argument))))


def predict(app: Application, request: Request, argument: str) -> Response:
    model, rows, body = predict_api.predict(app.models, request.body)
    return Response(200, body, rows=rows, model=model.name)


def explain(app: Application, request: Request, argument: str) -> Response:
    model, body = explain_api.explain(app.models, request.body)
    return Response(200, body, model=model.name)


def invocations(app: Application, request: Request, argument: str) -> Response:
    name, model = next(iter(app.models.by_name.items()))
    answer = scoring_api.invoke(model, app.models.schemas[name], request.head.headers.get("content-type"), request.body)
    return Response(answer.status, answer.body, rows=answer.rows, model=name)


def ping(app: Application, request: Request, argument: str) -> Response:
    return Response(200, b"\n", "text/plain; charset=utf-8")


def version(app: Application, request: Request, argument: str) -> Response:
    return Response(200, kernels.__version__.encode(), "text/plain; charset=utf-8")


def metrics(app: Application, request: Request, argument: str) -> Response:
    if "application/json" in request.head.headers.get("accept", ""):
        return json_response(app.metrics.as_json())
    content_type, text = app.metrics.as_text()
    return Response(200, text, content_type)


def describe_api(app: Application, request: Request, argument: str) -> Response:
    return json_response(openapi.document(authorized=bool(app.keys)))


def page(app: Application, request: Request, argument: str) -> Response:
    return Response(200, app.page, "text/html; charset=utf-8",
                    headers=(("Content-Security-Policy", "default-src 'self'; style-src 'unsafe-inline';"
                                                         " script-src 'unsafe-inline'"),))


ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": page},
    "/health": {"GET": health},
    "/ready": {"GET": ready},
    "/metrics": {"GET": metrics},
    "/openapi.json": {"GET": describe_api},
    "/v1/models": {"GET": list_models},
    "/v1/models/{id}": {"GET": one_model},
    "/v1/predict": {"POST": predict},
    "/v1/explain": {"POST": explain},
    "/invocations": {"POST": invocations},
    "/ping": {"GET": ping},
    "/version": {"GET": version},
}
MODEL_PREFIX = "/v1/models/"


def route_name(path: str) -> str:
    """The path's key in ROUTES, or "other": what metrics are counted under, so that clients cannot make up labels."""
    if path.startswith(MODEL_PREFIX) and len(path) > len(MODEL_PREFIX):
        return MODEL_PREFIX + "{id}"
    return path if path in ROUTES and "{" not in path else "other"


def find_route(path: str) -> tuple[dict[str, Handler], str]:
    """(handlers by method, the path's last part where the route has one), or ({}, "")."""
    name = route_name(path)
    return ROUTES.get(name, {}), path[len(MODEL_PREFIX):] if name.endswith("{id}") else ""
