"""Recipes: the table is what the program makes, and servers are run and judged for real."""

import json
import re
import subprocess
import sys
import textwrap
from argparse import Namespace
from collections import Counter
from importlib.util import find_spec
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tracing import recipes
from tracing.egress import LEAVES
from tracing.errors import TraceError
from tracing.recipes import COLUMNS, RECIPES, Ask, Results, Row, Talk

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = {"PASS", "FAIL", "INCONCLUSIVE"}
NOWHERE = IPv4Address("192.0.2.1")


def cells(text: str) -> list[list[str]]:
    """The rows of the one table in a document, its heading left out."""
    rows = [re.split(r"(?<!\\) ?\| ?", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert tuple(rows[0]) == COLUMNS and set(rows[1]) == {"---"}
    return rows[2:]


# The document in docs

def test_document_has_a_row_for_each_recipe_it_could_run():
    text = (ROOT / "docs" / "who-talks.md").read_text("utf-8")
    rows = cells(text)
    assert all(len(row) == len(COLUMNS) and all(row[i] for i in range(len(COLUMNS))) for row in rows)
    assert {row[4] for row in rows} <= VERDICTS
    shown = {(recipes.shown_command(recipe), recipes.shown_load(recipe)) for recipe in RECIPES}
    assert {(row[2], row[3]) for row in rows} <= shown
    assert {"Testigo", "FastAPI", "mlflow models serve"} <= {row[0].rpartition(" ")[0] for row in rows}


def test_document_names_no_folder_of_a_machine():
    text = (ROOT / "docs" / "who-talks.md").read_text("utf-8")
    assert not re.search(r"/(tmp|work|root|home|usr|var)/", text)


def test_document_says_that_mlflow_talks_unless_it_is_told_not_to():
    verdicts = {(row[0].rpartition(" ")[0], row[1]): row[4] for row in cells(
        (ROOT / "docs" / "who-talks.md").read_text("utf-8"))}
    assert verdicts["mlflow server", "as it comes"] == "FAIL"
    assert verdicts["mlflow server", "off"] == "PASS"


# The table

def test_names_are_unique_and_commands_start_python():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)
    assert all(recipe.command[0] == recipes.PYTHON for recipe in RECIPES)


def test_unknown_recipe_is_one_clear_line():
    with pytest.raises(TraceError, match="no recipe 'nginx'; expected one of testigo, fastapi"):
        recipes.chosen(["nginx"])


def test_chosen_recipes_keep_their_order():
    assert [recipe.name for recipe in recipes.chosen(["fastapi", "testigo"])] == ["testigo", "fastapi"]
    assert recipes.chosen([]) == list(RECIPES)


def test_table_escapes_what_would_end_a_cell():
    assert recipes.table([("a|b", "c")]) == "| a\\|b | c |\n"


def test_load_is_counted_by_kind():
    recipe = recipes.replace(recipes.FASTAPI, load=(Ask("pages", "GET", "/", times=3), Ask("pages", "GET", "/x"),
                                                    Ask("bad requests", "GET", "/y", times=2)))
    assert recipes.shown_load(recipe) == "4 pages, 2 bad requests"


def test_addresses_are_shown_by_the_names_that_were_asked_for():
    talk = Counter({Talk(LEAVES, "connect", "to 10.0.0.2:53 (DNS)"): 4, Talk(LEAVES, "connect", "to 192.0.2.1:443"): 2,
                    Talk(LEAVES, "socket", "a socket of family AF_NETLINK"): 1})
    assert recipes.describe(talk, {"host.example": NOWHERE}) == [
        "asks DNS for host.example", "`connect` to host.example:443 (2 times)",
        "`socket`: a socket of family AF_NETLINK"]


def test_question_whose_name_was_not_seen_is_still_told():
    assert recipes.describe(Counter({Talk(LEAVES, "connect", "to 10.0.0.2:53 (DNS)"): 1}), {}) == [
        "`connect` to a name server"]


def test_document_lists_what_is_not_there():
    results = Results([Row("A 1", "none", "`a`", "1 page", "PASS", "nothing left")], {"B": None}, {"C": "it broke"})
    text = recipes.document(results, {"Python": "3"})
    assert cells(text) == [["A 1", "none", "`a`", "1 page", "PASS", "nothing left"]]
    assert "\nNot installed here: B.\n" in text and "\nCould not be run here: C.\n" in text


@pytest.mark.parametrize("program, said", [("/no/such/python", "cannot run /no/such/python"), ("/bin/false", "is no Python")])
def test_interpreter_that_is_none_is_one_clear_line(program, said):
    with pytest.raises(TraceError, match=said):
        recipes.main(Namespace(names=[], out=None, python=program))


# Real servers

def who_talks(tmp_path: Path, *names: str) -> list[list[str]]:
    out = tmp_path / "who-talks.md"
    done = subprocess.run([sys.executable, "-m", "tracing", "who-talks", *names, "--out", out], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    if "network namespace" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return cells(out.read_text("utf-8"))


def test_our_server_and_a_fastapi_app_leave_nothing(tmp_path):
    names = ["testigo", *(["fastapi"] if find_spec("fastapi") and find_spec("uvicorn") else [])]
    rows = who_talks(tmp_path, *names)
    assert [row[4:] for row in rows] == [["PASS", "nothing left"]] * len(names)


def test_server_that_loads_a_logged_mlflow_model_talks(tmp_path):
    for package in "mlflow", "sklearn", "fastapi", "uvicorn":
        pytest.importorskip(package)
    [row] = who_talks(tmp_path, "mlflow-app")
    assert row[4] == "FAIL" and "mlflow-telemetry.io" in row[5]


TALKER = '''
import http.server
import socket

for _ in range(2):
    try:
        socket.create_connection(("telemetry.example", 443))
    except OSError:
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8123), http.server.SimpleHTTPRequestHandler).serve_forever()
'''


def run_recipe(files: dict[str, str], **changed: object) -> list:
    """A recipe of our own in a process of its own → its row, or the message why there is none."""
    code = textwrap.dedent("""
        import json, sys
        from tracing import isolation, recipes
        from tracing.nameserver import NameServer

        files, changed = json.load(sys.stdin)
        recipes.LINGER_S = 0.1
        page = recipes.Ask("pages", "GET", "/", times=3)
        recipe = recipes.Recipe("own", "Own", ("Python",), ("python", "server.py"), 8123, (page,), "some", files=files)
        try:
            isolation.enter()
            with NameServer.of_this_machine() as names:
                recipe = recipes.replace(recipe, **{key: tuple(value) for key, value in changed.items()})
                print(json.dumps(recipes.run(recipe, sys.executable, names, {"Python": "3"})))
        except recipes.TraceError as error:
            print(json.dumps([str(error)]))
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, input=json.dumps([files, changed]),
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if "network namespace" in said[0]:
        pytest.skip(said[0])
    return said


def test_server_that_talks_is_caught_and_named():
    row = run_recipe({"server.py": TALKER})
    assert row == ["Own 3", "some", "`python server.py`", "3 pages", "FAIL",
                   "asks DNS for telemetry.example; `connect` to telemetry.example:443 (2 times);"
                   " listens at 0.0.0.0:8123 (SOCK_STREAM)"]


def test_load_that_goes_wrong_is_no_pass():
    refusing = TALKER.replace("range(2)", "range(0)").replace("SimpleHTTPRequestHandler)", "BaseHTTPRequestHandler)")
    row = run_recipe({"server.py": refusing})
    assert row[4] == "INCONCLUSIVE" and "GET / answered 501" in row[5]


def test_server_that_does_not_start_is_one_clear_line():
    assert run_recipe({"server.py": "raise SystemExit('no licence')"}) == ["own did not start: no licence"]


def test_preparation_that_fails_is_one_clear_line():
    said = run_recipe({"server.py": TALKER}, prepare=["python", "-c", "raise SystemExit('no data')"])
    assert said == ["own cannot be prepared: no data"]
