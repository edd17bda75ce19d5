"""Databricks serving endpoints: create, update, split the traffic, promote, roll back, query, delete.

`python -m databricks.endpoints COMMAND ENDPOINT …`. Host and token are the SDK's own configuration (environment,
profile or notebook) and are never printed.

The rule to keep: what `roll_back` needs stays in the workspace. A served entity that a change takes the traffic from
stays in the config with 0 % of it, and the split before the change is in the endpoint's tags, one tag an entity.

https://docs.databricks.com/api/workspace/servingendpoints
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from databricks.sdk.service.serving import (
    EndpointCoreConfigInput, EndpointTag, Route, ServedEntityInput, ServingEndpointDetailed, ServingEndpointsAPI,
    TrafficConfig)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
ENTITY = re.compile(r"(?:([^=/]+)=)?([^=/\s]+)/([0-9]+)")  # [NAME=]MODEL/VERSION
SHARE = re.compile(r"([^=]+)=([0-9]{1,3})")  # NAME=PERCENT
SIZES = ("Small", "Medium", "Large")
MAX_ENTITIES = 10  # what an endpoint takes
TAG = "testigo-rollback-"  # + the entity's name; the value is its percentage before the last change
RETRY_S = 60  # the SDK sends again for so long what a workspace does not answer
PAYLOADS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class EndpointError(Exception):
    """What the caller or the workspace did that cannot work, in one line."""


class UpdateFailed(EndpointError):
    """The workspace could not deploy a config; the one before still serves."""


class Workspace(Protocol):
    """The part of the SDK's WorkspaceClient that is used here."""
    @property
    def serving_endpoints(self) -> Any: ...
    @property
    def api_client(self) -> Any: ...


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Patience:
    """How to wait for a deployment, which takes minutes."""
    timeout_s: float = 1200.0
    poll_s: float = 5.0
    say: Callable[[str], None] = _say


PATIENT = Patience()


# --- commands -----------------------------------------------------------------------------------

def entity(model: str, version: int | str, *, name: str = "", size: str = "Small",
           scale_to_zero: bool = True) -> ServedEntityInput:
    """A version of a registered model as an endpoint serves it, on CPU; by default named MODEL-VERSION."""
    name = name or re.sub(r"[^A-Za-z0-9_-]", "-", f"{model.rpartition('.')[2]}-{version}")
    _check_name(name, "served entity")
    if size not in SIZES:
        raise EndpointError(f"workload size {size!r}: expected one of {', '.join(SIZES)}")
    return ServedEntityInput(name=name, entity_name=model, entity_version=str(version), workload_size=size,
                             scale_to_zero_enabled=scale_to_zero)


def create(workspace: Workspace, endpoint: str, entities: Sequence[ServedEntityInput],
           traffic: Mapping[str, int] | None = None, *, patience: Patience | None = PATIENT) -> None:
    """Create an endpoint; `traffic` is {entity name: percent}, not needed for one entity.

    Waits until it is ready; with `patience=None` returns when the workspace has accepted. Raises EndpointError,
    UpdateFailed, and what the SDK raises.
    """
    _check_name(endpoint, "endpoint")
    traffic = _all_to_one(entities) if traffic is None else traffic
    workspace.serving_endpoints.create(endpoint, config=EndpointCoreConfigInput(
        name=endpoint, served_entities=list(entities), traffic_config=_routes(entities, traffic)))
    if patience:
        wait(workspace, endpoint, patience)


def update(workspace: Workspace, endpoint: str, entities: Sequence[ServedEntityInput],
           traffic: Mapping[str, int] | None = None, *, patience: Patience | None = PATIENT) -> None:
    """Serve further entities, or ones of the same names and versions with other sizes.

    One new entity takes all traffic unless `traffic` says otherwise. Entities that have traffic now, or get it, stay;
    the others go. Waits and raises as `create`.
    """
    before = _settled(workspace, endpoint)
    traffic = _all_to_one(entities) if traffic is None else traffic
    served, shares = _entities(before), _traffic(before)
    for new in entities:
        if new.name in served and served[new.name].entity_version != new.entity_version:
            raise EndpointError(f"{endpoint} serves version {served[new.name].entity_version} as {new.name!r}: give the"
                                " new version another name, so that it can be rolled back")
    kept = {name: old for name, old in served.items() if shares.get(name) or traffic.get(name)}
    after = kept | {str(new.name): new for new in entities}
    _change(workspace, before, list(after.values()), traffic, patience)


def split(workspace: Workspace, endpoint: str, traffic: Mapping[str, int], *,
          patience: Patience | None = PATIENT) -> None:
    """Share the traffic among served entities: {name: percent}, 100 in all; one that is not named gets none."""
    before = _settled(workspace, endpoint)
    _change(workspace, before, list(_entities(before).values()), traffic, patience)


def promote(workspace: Workspace, endpoint: str, name: str, *, remove_others: bool = False,
            patience: Patience | None = PATIENT) -> None:
    """Give one served entity all traffic.

    The others stay with none, so that `roll_back` needs no deployment (they cost nothing once scaled to zero);
    `remove_others` removes them, and then there is nothing to roll back to.
    """
    before = _settled(workspace, endpoint)
    entities = [served for served in _entities(before).values() if not remove_others or served.name == name]
    _change(workspace, before, entities, {name: 100}, patience)


def roll_back(workspace: Workspace, endpoint: str, *, patience: Patience | None = PATIENT) -> None:
    """Share the traffic as before the last change; rolling back again undoes that."""
    before = _settled(workspace, endpoint)
    entities, traffic = _entities(before), _remembered(before)
    if not traffic or traffic == _traffic(before):
        raise EndpointError(f"{endpoint} has no change to roll back")
    if gone := sorted(traffic.keys() - entities):
        raise EndpointError(f"{endpoint} no longer serves {', '.join(gone)}, which had traffic before the last change:"
                            " update it with that version")
    _change(workspace, before, list(entities.values()), traffic, patience)


def query(workspace: Workspace, endpoint: str, payload: Mapping[str, Any], *, entity_name: str = "") -> dict[str, Any]:
    """The endpoint's answer to an MLflow payload, with `served-model-name`; or one entity's, whatever its traffic.

    Raises EndpointError for a payload that is none, and what the SDK raises.
    """
    _check_name(endpoint, "endpoint")
    if not isinstance(payload, Mapping) or sum(key in payload for key in PAYLOADS) != 1:
        raise EndpointError(f"the payload must be a JSON object with one of {', '.join(PAYLOADS)}")
    if entity_name:
        _check_name(entity_name, "served entity")
        endpoint += f"/served-models/{entity_name}"
    return workspace.api_client.do("POST", f"/serving-endpoints/{endpoint}/invocations", body=dict(payload),
                                   headers={"Accept": "application/json", "Content-Type": "application/json"},
                                   response_headers=["served-model-name"])


def delete(workspace: Workspace, endpoint: str) -> None:
    """Delete an endpoint."""
    _check_name(endpoint, "endpoint")
    workspace.serving_endpoints.delete(endpoint)


def show(workspace: Workspace, endpoint: str) -> ServingEndpointDetailed:
    """The endpoint as the workspace has it now."""
    _check_name(endpoint, "endpoint")
    return workspace.serving_endpoints.get(endpoint)


def wait(workspace: Workspace, endpoint: str, patience: Patience = PATIENT) -> ServingEndpointDetailed:
    """Wait until no update is in progress and the endpoint is ready, saying each change of state.

    Raises UpdateFailed with the workspace's messages, EndpointError when `timeout_s` is over. The SDK's own wait takes
    an endpoint that is not ready for a finished one, and says nothing of why an update failed.
    """
    start, said = time.monotonic(), ""
    while True:
        detail = show(workspace, endpoint)
        elapsed_s = time.monotonic() - start
        state = _state(detail)
        if state != said:
            patience.say(f"{endpoint}: {state} after {elapsed_s:.0f} s")
            said = state
        if "UPDATE_FAILED" in state or "UPDATE_CANCELED" in state:
            raise UpdateFailed(f"{endpoint}: {state}: {_failures(detail) or 'the workspace gives no reason'}")
        if state == "NOT_UPDATING, READY":
            return detail
        if elapsed_s + patience.poll_s > patience.timeout_s:
            raise EndpointError(f"{endpoint} is still {state} after {patience.timeout_s:g} s; the workspace goes on")
        time.sleep(patience.poll_s)


# --- configs ------------------------------------------------------------------------------------

def _settled(workspace: Workspace, endpoint: str) -> ServingEndpointDetailed:
    """The endpoint before a change."""
    detail = show(workspace, endpoint)
    if "IN_PROGRESS" in _state(detail):
        raise EndpointError(f"{endpoint} is being updated: run this again when that has ended")
    return detail


def _change(workspace: Workspace, before: ServingEndpointDetailed, entities: Sequence[ServedEntityInput],
            traffic: Mapping[str, int], patience: Patience | None) -> None:
    """Send a config, and keep in the tags how the traffic was shared before it."""
    endpoint, routes = str(before.name), _routes(entities, traffic)
    workspace.serving_endpoints.update_config(endpoint, served_entities=list(entities), traffic_config=routes)
    shares = _traffic(before)
    if not shares.keys() <= {served.name for served in entities}:
        shares = {}
    _remember(workspace, endpoint, _remembered(before), shares)
    if patience:
        try:
            wait(workspace, endpoint, patience)
        except UpdateFailed:  # what served before still does, so what was before that is still what to roll back to
            _remember(workspace, endpoint, shares, _remembered(before))
            raise


def _remember(workspace: Workspace, endpoint: str, old: Mapping[str, int], new: Mapping[str, int]) -> None:
    tags = [EndpointTag(TAG + name, str(share)) for name, share in new.items()]
    gone = [TAG + name for name in old if name not in new]
    if tags or gone:
        workspace.serving_endpoints.patch(endpoint, add_tags=tags or None, delete_tags=gone or None)


def _remembered(detail: ServingEndpointDetailed) -> dict[str, int]:
    return {tag.key.removeprefix(TAG): int(tag.value) for tag in detail.tags or ()
            if tag.key.startswith(TAG) and tag.value and tag.value.isdigit()}


def _entities(detail: ServingEndpointDetailed) -> dict[str, ServedEntityInput]:
    """What is served, as it would be sent again."""
    served = detail.config.served_entities if detail.config else None
    entities = [ServedEntityInput.from_dict(one.as_dict()) for one in served or ()]
    for one in entities:
        if one.workload_size:  # the workspace answers both ways to say how large, and takes one
            one.min_provisioned_concurrency = one.max_provisioned_concurrency = None
    return {str(one.name): one for one in entities}


def _traffic(detail: ServingEndpointDetailed) -> dict[str, int]:
    config = detail.config.traffic_config if detail.config else None
    if config is None or not config.routes:
        return {name: 100 for name in list(_entities(detail))[:1]}
    return {str(route.served_model_name or route.served_entity_name): int(route.traffic_percentage)
            for route in config.routes if int(route.traffic_percentage)}


def _all_to_one(entities: Sequence[ServedEntityInput]) -> dict[str, int]:
    if len(entities) != 1:
        raise EndpointError("say how the traffic is shared among several served entities (--traffic NAME=PERCENT …)")
    return {str(entities[0].name): 100}


def _routes(entities: Sequence[ServedEntityInput], traffic: Mapping[str, int]) -> TrafficConfig:
    """The traffic of a config whose entities and percentages are checked here."""
    names = [str(one.name) for one in entities]
    if len(set(names)) < len(names):
        raise EndpointError("two served entities have the same name")
    if len(names) > MAX_ENTITIES:
        raise EndpointError(f"{len(names)} served entities: an endpoint takes {MAX_ENTITIES} (promote --remove-others"
                            " removes those without traffic)")
    if unknown := sorted(traffic.keys() - set(names)):
        raise EndpointError(f"no served entity is named {', '.join(unknown)}; there are {', '.join(names)}")
    if not all(0 <= share <= 100 for share in traffic.values()) or sum(traffic.values()) != 100:
        raise EndpointError(f"the percentages must sum to 100, not {sum(traffic.values())}")
    return TrafficConfig([Route(served_model_name=name, traffic_percentage=traffic.get(name, 0)) for name in names])


def _check_name(name: str, of: str) -> None:
    if not NAME.fullmatch(name):
        raise EndpointError(f"{of} name {name!r}: expected letters, digits, - and _, at most 63")


def _state(detail: ServingEndpointDetailed) -> str:
    state = detail.state
    update = state.config_update.value if state and state.config_update else "unknown"
    return f"{update}, {state.ready.value if state and state.ready else 'unknown'}"


def _failures(detail: ServingEndpointDetailed) -> str:
    """What the workspace says of entities that it could not deploy."""
    served = [*(detail.config and detail.config.served_entities or ()),
              *(detail.pending_config and detail.pending_config.served_entities or ())]
    reasons = {str(one.name): one.state.deployment_state_message or one.state.deployment.value for one in served
               if one.state and one.state.deployment and one.state.deployment.value.endswith(("FAILED", "ABORTED"))}
    return "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in reasons.items())


# --- command line -------------------------------------------------------------------------------

class DryRun:
    """A workspace that prints what would be sent, and sends nothing: bodies on stdout, their paths on stderr.

    The bodies are the SDK's own. `before` is the endpoint's present state; without it that is asked of `client`.
    """

    def __init__(self, before: Mapping[str, Any] | None, client: Callable[[], Any]):
        self._before, self._client = before, client
        self.serving_endpoints, self.api_client = ServingEndpointsAPI(self), self
        self._cfg = argparse.Namespace(workspace_id=None)  # the SDK reads it from its api client

    def do(self, method: str, path: str, body: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
        if method == "GET":
            return dict(self._before) if self._before is not None else self._client().api_client.do(method, path)
        _say(f"{method} {path}")
        if body is not None:
            print(json.dumps(body, indent=2))
        return {"name": ""}  # the SDK reads the name in the answer to a change


def connect() -> Any:
    """The SDK's client of the configured workspace; raises EndpointError when none is."""
    from databricks.sdk import WorkspaceClient
    from databricks.sdk.core import Config
    try:
        return WorkspaceClient(config=Config(retry_timeout_seconds=RETRY_S))
    except ValueError:  # its text shows the configuration
        raise EndpointError("no workspace is configured, or not wholly: set DATABRICKS_HOST and DATABRICKS_TOKEN, or"
                            " DATABRICKS_CONFIG_PROFILE") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1 what the workspace refused or could not do, 2 for bad options."""
    from databricks.sdk.errors import DatabricksError
    options = _parser().parse_args(argv)
    try:
        if options.state and not options.dry_run:
            raise EndpointError("--state is for --dry-run: without that the workspace is asked, and changed")
        workspace = DryRun(options.state and _object(options.state), connect) if options.dry_run else connect()
        options.run(workspace, options)
        return 0
    except EndpointError as error:
        message = str(error)
    except DatabricksError as error:
        message = f"the workspace refused: {_refusal(error)}"
    except (OSError, TimeoutError) as error:
        message = f"the workspace cannot be reached: {type(error).__name__}"
    except KeyboardInterrupt:
        message = "interrupted; what the workspace has accepted goes on"
    print(f"endpoints: error: {message}", file=sys.stderr)
    return 1


def _refusal(error: Exception) -> str:
    """The workspace's own message; the SDK adds its configuration to some."""
    message = str(error).partition(". Config: ")[0]
    return f"{type(error).__name__}: {' '.join(message.split())}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="databricks.endpoints", description="Databricks serving endpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Any, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("endpoint", metavar="ENDPOINT")
        added.set_defaults(run=run, state=None)
        added.add_argument("--dry-run", action="store_true", help="print the JSON bodies and change nothing")
        return added

    def changing(name: str, run: Callable[[Any, argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = command(name, run, text)
        added.add_argument("--no-wait", action="store_true", help="return when the workspace has accepted")
        added.add_argument("--timeout", type=float, default=PATIENT.timeout_s, metavar="S",
                           help="give up waiting after S seconds (default: %(default)g)")
        added.add_argument("--poll", type=float, default=PATIENT.poll_s, metavar="S",
                           help="ask for the state every S seconds (default: %(default)g)")
        if run is not _create:
            added.add_argument("--state", metavar="FILE", help="for --dry-run without a workspace: what 'show --json'"
                                                               " printed")
        return added

    for name, run, text in (("create", _create, "create an endpoint"), ("update", _update, "serve further entities")):
        added = changing(name, run, text)
        added.add_argument("entities", nargs="+", type=_entity_parts, metavar="[NAME=]MODEL/VERSION")
        added.add_argument("--traffic", nargs="+", type=_share, metavar="NAME=PERCENT",
                           help="how the traffic is shared (default: all to the one entity given)")
        added.add_argument("--size", choices=SIZES, default=SIZES[0], help="(default: %(default)s)")
        added.add_argument("--no-scale-to-zero", action="store_true", help="keep it running when idle, at a cost")
    changing("split", _split, "share the traffic, for example 90 to 10").add_argument(
        "traffic", nargs="+", type=_share, metavar="NAME=PERCENT")
    added = changing("promote", _promote, "give one served entity all traffic")
    added.add_argument("entity", metavar="NAME")
    added.add_argument("--remove-others", action="store_true", help="do not keep the others for a rollback")
    changing("rollback", _roll_back, "share the traffic as before the last change")
    added = command("query", _query, "send a payload, print the answer")
    added.add_argument("payload", metavar="JSON|FILE|-", help="an object with one of " + ", ".join(PAYLOADS))
    added.add_argument("--entity", default="", metavar="NAME", help="ask this served entity whatever its traffic")
    command("delete", lambda workspace, options: delete(workspace, options.endpoint), "delete an endpoint")
    command("show", _show, "print what an endpoint serves").add_argument(
        "--json", action="store_true", help="all that the workspace says, environment variables included")
    return parser


def _entity_parts(text: str) -> tuple[str, str, str]:
    if not (match := ENTITY.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected [NAME=]MODEL/VERSION, such as champion=main.ml.fraud/3")
    return match[1] or "", match[2], match[3]


def _share(text: str) -> tuple[str, int]:
    if not (match := SHARE.fullmatch(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=PERCENT, such as challenger=10")
    return match[1], int(match[2])


def _shares(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    if len(dict(pairs)) < len(pairs):
        raise EndpointError("a served entity has two percentages")
    return dict(pairs)


def _patience(options: argparse.Namespace) -> Patience | None:
    return None if options.no_wait or options.dry_run else Patience(options.timeout, options.poll)


def _given(options: argparse.Namespace) -> tuple[list[ServedEntityInput], dict[str, int] | None]:
    entities = [entity(model, version, name=name, size=options.size, scale_to_zero=not options.no_scale_to_zero)
                for name, model, version in options.entities]
    return entities, None if options.traffic is None else _shares(options.traffic)


def _create(workspace: Workspace, options: argparse.Namespace) -> None:
    create(workspace, options.endpoint, *_given(options), patience=_patience(options))


def _update(workspace: Workspace, options: argparse.Namespace) -> None:
    update(workspace, options.endpoint, *_given(options), patience=_patience(options))


def _split(workspace: Workspace, options: argparse.Namespace) -> None:
    split(workspace, options.endpoint, _shares(options.traffic), patience=_patience(options))


def _promote(workspace: Workspace, options: argparse.Namespace) -> None:
    promote(workspace, options.endpoint, options.entity, remove_others=options.remove_others,
            patience=_patience(options))


def _roll_back(workspace: Workspace, options: argparse.Namespace) -> None:
    roll_back(workspace, options.endpoint, patience=_patience(options))


def _query(workspace: Workspace, options: argparse.Namespace) -> None:
    start = time.perf_counter()
    answer = query(workspace, options.endpoint, _object(options.payload), entity_name=options.entity)
    if not options.dry_run:
        served_by = answer.pop("served-model-name", None)
        _say(f"served by {served_by or 'an entity without a name'} in {(time.perf_counter() - start) * 1e3:.1f} ms")
        print(json.dumps(answer))


def _show(workspace: Workspace, options: argparse.Namespace) -> None:
    detail = show(workspace, options.endpoint)
    if options.json:
        print(json.dumps(detail.as_dict(), indent=2))
        return
    traffic = _traffic(detail)
    print(f"{detail.name}: {_state(detail)}")
    for name, one in _entities(detail).items():
        zero = ", scales to zero" if one.scale_to_zero_enabled else ""
        print(f"{traffic.get(name, 0):4} %  {name}: {one.entity_name} version {one.entity_version},"
              f" {one.workload_size or 'provisioned'}{zero}")


def _object(text: str) -> dict[str, Any]:
    """A JSON object given in place, in a file, or on stdin (`-`)."""
    try:
        if not text.lstrip().startswith("{"):
            text = sys.stdin.read() if text == "-" else Path(text).read_text("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
    except OSError as error:
        raise EndpointError(f"{text}: {error.strerror}") from None
    except ValueError:
        raise EndpointError("expected a JSON object, in place, in a file or on stdin (null where a number is"
                            " missing)") from None
    if not isinstance(value, dict):
        raise EndpointError("expected a JSON object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(name)


if __name__ == "__main__":
    raise SystemExit(main())
