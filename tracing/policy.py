"""Policies: TOML files of assertions about a trace. What one may say is a table here; what it means is in `checks`.

    name = "steady"
    about = "one line for people"
    profile = "full"                    # how to record for it

    [[assert]]
    name = "nothing is opened"
    phase = "serving"                   # or a list of phases, or "all"; serving when left out
    check = "calls"                     # a row of checks.CHECKS, which says what other keys there are
    never = ["openat", "%process"]

The rule to keep: a key or value that is not understood is an error with its line, never passed over.
"""

import errno
import glob
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracing import calls
from tracing.assertion import Assertion, Bound
from tracing.checks import CHECKS
from tracing.egress import check_name
from tracing.errors import TraceError
from tracing.phases import PHASES

SHIPPED = Path(__file__).parent / "policies"
PROFILES = ("sovereign", "full")
FOLDER = "{folder}"  # in a shipped policy: what stands behind the colon of `--policy readonly:/srv/data`


@dataclass(frozen=True)
class Policy:
    name: str
    about: str
    profile: str  # how a trace has to be recorded for it
    assertions: tuple[Assertion, ...]


def load(name: str) -> Policy:
    """A shipped policy by name ("steady", "readonly:/srv/data") or one of your own by its path.

    Raises TraceError with the file, the line and what was expected.
    """
    path, colon, folder = SHIPPED / f"{name}.toml", "", ""
    if not path.is_file():
        shipped, colon, folder = name.partition(":")
        path = SHIPPED / f"{shipped}.toml" if colon else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(policy.stem for policy in SHIPPED.glob("*.toml")))
        raise TraceError(f"no policy {name!r}: expected one of {known}, or the path of a TOML file")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None
    if folder and FOLDER not in text:
        raise TraceError(f"policy {path.stem} takes no folder: write it without the colon and what follows")
    return read(text, str(path), str(Path(folder).resolve()) if folder else None)


def read(text: str, path: str, folder: str | None = None) -> Policy:
    """A policy from the text of its file; `path` is for messages, `folder` for {folder}."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TraceError(f"{path}: not TOML: {error}") from None
    return _Reader(path, text, folder).policy(tables)


class _Reader:
    def __init__(self, path: str, text: str, folder: str | None):
        self._path, self._lines, self._folder = path, text.splitlines(), folder

    def policy(self, tables: dict[str, Any]) -> Policy:
        for key in tables:
            if key not in ("name", "about", "profile", "assert"):
                raise self._error(-1, key, "expected name, about, profile and [[assert]] tables")
        for key in ("name", "profile"):
            if not isinstance(tables.get(key), str):
                raise self._error(-1, key, "expected a string")
        if tables["profile"] not in PROFILES:
            raise self._error(-1, "profile", f"expected one of {', '.join(PROFILES)}")
        if not isinstance(tables.get("about", ""), str):
            raise self._error(-1, "about", "expected a string")
        given = tables.get("assert")
        if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
            raise self._error(-1, "assert", "expected at least one [[assert]] table")
        return Policy(tables["name"], tables.get("about", ""), tables["profile"], tuple(
            self._assertion(tables["name"], i, one) for i, one in enumerate(given)))

    def _assertion(self, policy: str, i: int, given: dict[str, Any]) -> Assertion:
        if not isinstance(given.get("name"), str):
            raise self._error(i, "name", "expected a string")
        check = given.get("check")
        if not isinstance(check, str) or check not in CHECKS:
            raise self._error(i, "check", f"expected one of {', '.join(CHECKS)}")
        spec = CHECKS[check]
        known = {**spec.needs, **spec.may}
        for key in given:
            if key not in known and key not in ("name", "phase", "check"):
                raise self._error(i, key, f"a check of {check} has the keys {', '.join(known)}")
        for key in spec.needs:
            if key not in given:
                raise self._error(i, key, "is missing")
        options = {key: self._value(i, key, known[key], given[key]) for key in known if key in given}
        if spec.one_of and sum(key in given for key in spec.one_of) != 1:
            raise self._error(i, spec.one_of[0], f"expected exactly one of {' and '.join(spec.one_of)}")
        return Assertion(policy, given["name"], self._phases(i, given.get("phase", "serving")), check, options)

    def _phases(self, i: int, given: object) -> frozenset[str]:
        names = PHASES if given == "all" else given if isinstance(given, list) else [given]
        if not names or not all(name in PHASES for name in names):
            raise self._error(i, "phase", f"expected \"all\", or one or a list of {', '.join(PHASES)}")
        return frozenset(names)

    def _value(self, i: int, key: str, kind: str, given: Any) -> Any:
        try:
            return VALUES[kind](given) if kind != "globs" else self._globs(given)
        except ValueError as error:
            raise self._error(i, key, str(error))

    def _globs(self, given: Any) -> tuple[str, ...]:
        globs = _strings(given)
        if self._folder is None and not self._path.startswith(str(SHIPPED)) and any(FOLDER in each for each in globs):
            raise ValueError(f"only a policy that is shipped may say {FOLDER}")
        if self._folder is None:
            return tuple(each for each in globs if FOLDER not in each)
        return tuple(each.replace(FOLDER, glob.escape(self._folder.rstrip("/"))) for each in globs)

    def _error(self, i: int, key: str, why: str) -> TraceError:
        return TraceError(f"{self._path}:{self._line(i, key)}: {key}: {why}")

    def _line(self, i: int, key: str) -> int:
        """The line of a key of the i-th assertion (-1: of the top); that of its table where it is missing."""
        at, table = -1, 1
        for number, line in enumerate(self._lines, 1):
            if re.match(r"\s*\[\[\s*\"?assert\"?\s*\]\]", line):
                at += 1
                if at == i:
                    table = number
            elif at == i and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return table


def _strings(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise ValueError("expected a list of strings, at least one")
    return tuple(given)


def _calls(given: Any) -> frozenset[str]:
    return calls.expand(_strings(given))


def _call(given: Any) -> str:
    if given not in calls.NAMES:
        raise ValueError("expected the name of a system call")
    return given


def _bound(given: Any) -> Bound:
    found = re.fullmatch(r"(==|<=|>=) *(-?\d+(?:\.\d+)?)|(-?\d+(?:\.\d+)?) *\.\. *(-?\d+(?:\.\d+)?)", str(given))
    if not isinstance(given, str) or found is None:
        raise ValueError('expected "== n", "<= n", ">= n" or "n..m"')
    if found[3] is not None:
        if float(found[3]) > float(found[4]):
            raise ValueError("the first number must not be larger than the second")
        return Bound(float(found[3]), float(found[4]))
    n = float(found[2])
    return {"==": Bound(n, n), "<=": Bound(float("-inf"), n), ">=": Bound(n, float("inf"))}[found[1]]


def _addresses(given: Any) -> tuple[str, ...]:
    names = _strings(given)
    for name in names:
        check_name(name)
    return names


def _errnos(given: Any) -> frozenset[str]:
    names = _strings(given)
    wrong = [name for name in names if name not in errno.errorcode.values()]
    if wrong:
        raise ValueError(f'{wrong[0]} is no error; expected names such as "EMFILE"')
    return frozenset(names)


def _choice(*choices: str):
    def choose(given: Any) -> str:
        if given not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return given
    return choose


def _whole(given: Any) -> int:
    if type(given) is not int or given < 0:
        raise ValueError("expected a whole number of at least 0")
    return given


def _flag(given: Any) -> bool:
    if type(given) is not bool:
        raise ValueError("expected true or false")
    return given


VALUES = {  # the types of values that an assertion may have
    "calls": _calls, "call": _call, "bound": _bound, "addresses": _addresses, "errnos": _errnos, "whole": _whole,
    "flag": _flag,
    "per": _choice("total", "request", "token", "second"), "threads": _choice("all", "background"),
    "opened": _choice("read", "write", "any"), "way": _choice("connect", "bind", "send"),
    "globs": _strings,
}


def profile_for(policies: Iterable[Policy]) -> str:
    """The profile that holds what all of them need."""
    return "full" if any(policy.profile == "full" for policy in policies) else "sovereign"


def load_all(names: Sequence[str]) -> tuple[Policy, ...]:
    return tuple(load(name) for name in names)
