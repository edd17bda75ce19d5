"""Policies: what is not understood is an error with its line."""

import pytest

from tests.tracing.traces import policy
from tracing import policy as policies
from tracing.errors import TraceError
from tracing.phases import PHASES

pytestmark = pytest.mark.core

HEAD = 'name = "p"\nprofile = "full"\n'
ASSERT = '\n[[assert]]\nname = "a"\ncheck = "calls"\nnever = ["connect"]\n'


def test_shipped_policies_load():
    assert {policies.load(name).name for name in ("sovereign", "steady", "readonly", "readonly:/srv")} == {
        "sovereign", "steady", "readonly"}


def test_folder_stands_for_itself(tmp_path):
    (assertion,) = policies.load(f"readonly:{tmp_path}").assertions
    assert f"{tmp_path}/**" in assertion.options["only"]
    assert not any("{folder}" in glob for glob in policies.load("readonly").assertions[0].options["only"])


def test_folder_is_no_pattern(tmp_path):
    from tracing.checks import matches
    (tmp_path / "[ab]").mkdir()
    globs = policies.load(f"readonly:{tmp_path}/[ab]").assertions[0].options["only"]
    assert matches(f"{tmp_path}/[ab]/x", globs) and not matches(f"{tmp_path}/a/x", globs)


def test_own_policy_by_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + ASSERT)
    (assertion,) = policies.load(str(path)).assertions
    assert (assertion.name, assertion.phases, assertion.options) == ("a", {"serving"}, {"never": {"connect"}})


def test_phases_are_one_or_a_list_or_all():
    assert policy('check = "errnos"\nnever = ["EIO"]\nphase = "all"').assertions[0].phases == set(PHASES)
    assert policy('check = "errnos"\nnever = ["EIO"]\nphase = ["load", "drain"]').assertions[0].phases == {"load", "drain"}


@pytest.mark.parametrize("text, line, message", [
    ('name = "p"\nprofile = "fast"\n' + ASSERT, 2, "expected one of sovereign, full"),
    (HEAD + "colour = 1\n" + ASSERT, 3, "colour: expected name, about, profile"),
    (HEAD, 1, "at least one"),
    (HEAD + ASSERT + "phse = \"load\"\n", 8, "phse: a check of calls has the keys never|only"),
    (HEAD + ASSERT + "phase = \"lunch\"\n", 8, "startup, load, warmup, serving, drain, shutdown"),
    (HEAD + ASSERT + "only = [\"read\"]\n", 8, "exactly one of only and never"),
    (HEAD + ASSERT.replace("connect", "conect"), 7, "conect is no system call"),
    (HEAD + ASSERT.replace("connect", "%nett"), 7, "%nett is no class"),
    (HEAD + ASSERT.replace('["connect"]', '"connect"'), 7, "expected a list of strings"),
    (HEAD + ASSERT.replace('"calls"', '"magic"'), 6, "check: expected one of calls, count"),
    (HEAD + ASSERT + ASSERT.replace("never", "nevr"), 12, "nevr"),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "count"\n', 3, "is: is missing"),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "count"\nis = "about 5"\n', 6, 'expected "== n"'),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "count"\nis = "== 5"\nper = "week"\n', 7, "total, request, token, second"),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "addresses"\nof = "connect"\nonly = ["nowhere"]\n', 7, "expected an address"),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "errnos"\nonly = ["nope"]\n', 6, '"EMFILE"'),
    (HEAD + ASSERT.replace('["connect"]', "[]"), 7, "at least one"),
    (HEAD + '[[assert]]\nname = "a"\ncheck = "count"\nis = "5..1"\n', 6, "must not be larger"),
    (HEAD + '[[assert]]\ncheck = "errnos"\nonly = ["EIO"]\n', 3, "name: expected a string"),
])
def test_what_is_not_understood_is_an_error_with_its_line(text, line, message):
    with pytest.raises(TraceError, match=rf"^test.toml:{line}: .*(?:{message})"):
        policies.read(text, "test.toml")


def test_folder_where_none_is_taken_is_an_error(tmp_path):
    with pytest.raises(TraceError, match="takes no folder"):
        policies.load("sovereign:/srv")
    with pytest.raises(TraceError, match="only a policy that is shipped"):
        policies.read(HEAD + '[[assert]]\nname = "a"\ncheck = "paths"\nopened = "write"\nnever = ["{folder}/**"]\n', "test.toml")


def test_text_that_is_no_toml_is_an_error():
    with pytest.raises(TraceError, match="not TOML.*line 1"):
        policies.read("= 5", "test.toml")


def test_policy_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TraceError, match="expected one of readonly, sovereign, steady, or the path"):
        policies.load("stedy")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TraceError, match="not UTF-8"):
        policies.load(str(tmp_path / "binary.toml"))


@pytest.mark.parametrize("text, inside, outside", [
    ("== 2", (2,), (1, 3)), ("<= 5", (5, -1), (5.1,)), (">= 3", (3, 99), (2,)), ("1..4", (1, 4), (0, 5)), ("-2 .. 2.5", (-2, 2.5), (3,))])
def test_bounds(text, inside, outside):
    bound = policy(f'check = "count"\nis = "{text}"').assertions[0].options["is"]
    assert all(n in bound for n in inside) and not any(n in bound for n in outside)
