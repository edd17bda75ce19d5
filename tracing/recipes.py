"""Other people's servers, judged: recipes that start one, use it and stop it under strace; the table of what was found.

    python -m tracing who-talks --out docs/who-talks.md

The rule to keep: a recipe starts a server as its own documents say, in a network namespace that leads nowhere and with
an environment without marks of a test or CI run (some programs keep quiet there): what it tries is seen, and none of
it arrives. Loading counts for all: each is judged from its first call on, ours too.
"""

import contextlib
import http.client
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

from tracing import isolation, judge, preflight, record
from tracing.egress import LEAVES, UNPROVEN, Watch
from tracing.errors import TraceError
from tracing.judge import Judgement
from tracing.nameserver import NameServer
from tracing.phases import PHASES
from tracing.policy import Policy, load
from tracing.replay import Replay, Step

READY_S, STOP_S, PREPARE_S, ANSWER_S = 90.0, 20.0, 180.0, 30.0
POLL_S = 0.1
LINGER_S = 3.0  # after the load: what a background thread sends, it has tried by then
PYTHON = "python"  # in a command: the interpreter that the recipes are run with
MODEL_URI = "models:/ID"  # in a command: what the preparation left in the file model.uri
FOLDER = Path(__file__).resolve().parent.parent
OWN = "testigo"
PASSED_ON = ("HOME", "XDG_CACHE_HOME", "TESTIGO_CACHE_DIR")  # to our own server: its compiled code lies there
PREDICTIONS = 200
NO_ANSWER = (OSError, http.client.HTTPException)


class Ask(NamedTuple):
    """One kind of request of a load, sent `times` times."""

    what: str  # in the plural
    method: str
    path: str
    body: str | None = None
    times: int = 1
    expected: tuple[int, ...] = (200,)


@dataclass(frozen=True)
class Recipe:
    name: str
    server: str
    needs: tuple[str, ...]  # distributions; the first is the server's own
    command: tuple[str, ...]
    port: int
    load: tuple[Ask, ...]
    telemetry: str = ""
    ready: str = "/"  # answered once it serves
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # what has to be there, by name
    prepare: tuple[str, ...] = ()  # a command that comes before, and is not judged


class Row(NamedTuple):
    server: str
    telemetry: str
    command: str
    load: str
    verdict: str
    found: str


# What is run

FASTAPI_APP = '''
from fastapi import FastAPI
from pydantic import BaseModel

WEIGHTS, BIAS = [0.5, -0.3, 0.8, -0.2, 0.4], 0.1
app = FastAPI()


class Request(BaseModel):
    inputs: list[list[float]]


@app.post("/v1/predict")
async def predict(request: Request) -> dict:
    return {"predictions": [sum(w * x for w, x in zip(WEIGHTS, row)) + BIAS for row in request.inputs]}
'''

MLFLOW_MODEL = '''
import mlflow.sklearn
from sklearn.linear_model import LinearRegression

rows = [[float(i == j) for j in range(5)] for i in range(5)]
model = LinearRegression(fit_intercept=False).fit(rows, [0.5, -0.3, 0.8, -0.2, 0.4])
mlflow.sklearn.save_model(model, "model")
'''

LOGGED_MODEL = MLFLOW_MODEL.replace('mlflow.sklearn.save_model(model, "model")', '''
info = mlflow.sklearn.log_model(model, name="model")
with open("model.uri", "w") as file:
    file.write(info.model_uri)
''')

MLFLOW_FASTAPI_APP = '''
import mlflow.pyfunc
from fastapi import FastAPI
from pydantic import BaseModel

model = mlflow.pyfunc.load_model(open("model.uri").read())
app = FastAPI()


class Request(BaseModel):
    inputs: list[list[float]]


@app.post("/v1/predict")
async def predict(request: Request) -> dict:
    return {"predictions": model.predict(request.inputs).tolist()}
'''

STREAMLIT_APP = '''
import streamlit

x = streamlit.slider("x", 0.0, 1.0)
streamlit.write(0.5 * x + 0.1)
'''

INPUTS = json.dumps({"inputs": [[0.1, 0.2, 0.3, 0.4, 0.5]]})
REFUSED = (400, 404, 405, 422, 500)  # mlflow answers 500 to some bad input


def bad_requests(path: str) -> tuple[Ask, ...]:
    bodies = "{inputs", "{}", json.dumps({"inputs": [["a"]]})
    return *(Ask("bad requests", "POST", path, body, 2, REFUSED) for body in bodies), \
        Ask("bad requests", "GET", "/no/such/path", None, 2, REFUSED)


def predictions(path: str) -> tuple[Ask, ...]:
    return Ask("predictions", "POST", path, INPUTS, PREDICTIONS), *bad_requests(path)


AS_IT_COMES = "as it comes"
MLFLOW_OFF = {"MLFLOW_DISABLE_TELEMETRY": "true"}


def without_telemetry(recipe: Recipe) -> Recipe:
    """An mlflow recipe with the switch that mlflow's documents name."""
    return replace(recipe, name=f"{recipe.name}-off", telemetry="off", env=MLFLOW_OFF)


STREAMLIT_OFF = ("--browser.gatherUsageStats", "false", "--server.address", "127.0.0.1")

TESTIGO = Recipe(OWN, "Testigo", (OWN,), (PYTHON, "-m", "server"), 8080, predictions("/v1/predict"), "it has none",
                 ready="/ready", prepare=(PYTHON, "-m", "server", "warm"))
FASTAPI = Recipe("fastapi", "FastAPI", ("fastapi", "uvicorn"), (PYTHON, "-m", "uvicorn", "app:app"), 8000,
                 predictions("/v1/predict"), "it has none", ready="/docs", files={"app.py": FASTAPI_APP})
MLFLOW_MODELS = Recipe("mlflow-models", "mlflow models serve", ("mlflow", "scikit-learn"),
                       (PYTHON, "-m", "mlflow", "models", "serve", "-m", "model", "--env-manager", "local"), 5000,
                       predictions("/invocations"), AS_IT_COMES, ready="/ping", files={"train.py": MLFLOW_MODEL},
                       prepare=(PYTHON, "train.py"))
MLFLOW_LOGGED = replace(MLFLOW_MODELS, name="mlflow-logged", files={"train.py": LOGGED_MODEL}, command=(
    PYTHON, "-m", "mlflow", "models", "serve", "-m", MODEL_URI, "--env-manager", "local"))
MLFLOW_APP = replace(FASTAPI, name="mlflow-app", server="mlflow in a FastAPI app", telemetry=AS_IT_COMES,
                     needs=("mlflow", "scikit-learn", "fastapi", "uvicorn"), prepare=(PYTHON, "train.py"),
                     files={"train.py": LOGGED_MODEL, "app.py": MLFLOW_FASTAPI_APP})
MLFLOW_SERVER = Recipe("mlflow-server", "mlflow server", ("mlflow",), (PYTHON, "-m", "mlflow", "server"), 5000, (
    Ask("pages", "GET", "/", times=20), Ask("pages", "GET", "/ajax-api/3.0/mlflow/ui-telemetry", times=2),
    Ask("API calls", "POST", "/api/2.0/mlflow/experiments/search", '{"max_results": 5}', 50),
    Ask("API calls", "POST", "/api/2.0/mlflow/experiments/create", '{"name": "one"}'),
    Ask("bad requests", "POST", "/api/2.0/mlflow/runs/get", "{", 5, REFUSED)), AS_IT_COMES, ready="/health")
STREAMLIT = Recipe("streamlit", "streamlit run", ("streamlit",), (PYTHON, "-m", "streamlit", "run", "app.py"), 8501, (
    Ask("pages", "GET", "/", times=50), Ask("pages", "GET", "/_stcore/host-config", times=5),
    Ask("bad requests", "POST", "/_stcore/health", "{", 5, REFUSED)), AS_IT_COMES, ready="/_stcore/health",
    files={"app.py": STREAMLIT_APP})
JUPYTER = Recipe("jupyter", "Jupyter server", ("jupyter-server",), (
    PYTHON, "-m", "jupyter", "server", "--no-browser", "--allow-root", "--IdentityProvider.token="), 8888, (
    Ask("API calls", "GET", "/api/status", times=50), Ask("API calls", "GET", "/api/contents", times=20),
    Ask("API calls", "GET", "/api/kernelspecs", times=5),
    Ask("bad requests", "GET", "/no/such/path", None, 5, REFUSED)), "it has none", ready="/api")

RECIPES = (
    TESTIGO, FASTAPI, MLFLOW_MODELS, without_telemetry(MLFLOW_MODELS),
    MLFLOW_LOGGED, without_telemetry(MLFLOW_LOGGED), MLFLOW_APP, without_telemetry(MLFLOW_APP),
    MLFLOW_SERVER, without_telemetry(MLFLOW_SERVER),
    STREAMLIT,
    replace(STREAMLIT, name="streamlit-off", telemetry="off, and one address to listen at",
            command=(*STREAMLIT.command, *STREAMLIT_OFF)),
    JUPYTER,
)


# Running one

class Bench:
    """An interpreter and a private folder for one recipe."""

    def __init__(self, recipe: Recipe, python: str, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.python = sys.executable if recipe.name == OWN else python
        home = {"HOME": str(folder)} if recipe.name != OWN else {
            name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"PYTHONPATH": str(FOLDER)}
        path = os.pathsep.join([str(Path(self.python).parent), os.environ.get("PATH", os.defpath)])
        self.env = {"PATH": path, "TMPDIR": str(folder), "LANG": "C.UTF-8", **home, **recipe.env}
        for name, text in recipe.files.items():
            (folder / name).write_text(text, "utf-8")

    def command(self, given: Sequence[str]) -> list[str]:
        stands_for = {PYTHON: self.python}
        if MODEL_URI in given:
            stands_for[MODEL_URI] = (self.folder / "model.uri").read_text("utf-8")
        return [stands_for.get(word, word) for word in given]

    def prepare(self) -> None:
        """Raises TraceError, with the last thing that was said, where this fails."""
        if not self.recipe.prepare:
            return
        try:
            done = subprocess.run(self.command(self.recipe.prepare), env=self.env, cwd=self.folder, text=True,
                                  capture_output=True, timeout=PREPARE_S, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise TraceError(f"{self.recipe.name}: its preparation took longer than {PREPARE_S:.0f} s") from None
        if done.returncode:
            raise TraceError(f"{self.recipe.name} cannot be prepared: {last_line(done.stderr)}")

    def record(self, trace: Path) -> list[str]:
        """Start the server, use it and stop it → what went otherwise than expected."""
        log = self.folder / "log"
        with log.open("wb") as output, record.start(
                self.command(self.recipe.command), path=trace, env=self.env, cwd=str(self.folder),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output) as recording:
            try:
                wait_until_ready(recording, self.recipe)
            except TraceError as error:
                raise TraceError(f"{error}: {last_line(log.read_text(errors='replace'))}") from None
            return [*drive(self.recipe), *(["it ended by itself"] if ends(recording, LINGER_S) else stop(recording))]


def run(recipe: Recipe, python: str, names: NameServer, versions: Mapping[str, str]) -> Row:
    """One row of the table. Raises TraceError where the server does not start."""
    with tempfile.TemporaryDirectory(prefix="testigo-recipe-") as folder:
        bench, trace = Bench(recipe, python, Path(folder)), Path(folder) / "server.trace"
        bench.prepare()
        names.forget()
        wrong = bench.record(trace)
        judgement = judge.judge(trace, [from_the_first_call(load("sovereign"))])
        said = [text.replace(f"{folder}/", "") for text in describe(Counter(findings(trace)), names.names)]
    return row(recipe, versions, judgement, said, wrong)


def from_the_first_call(policy: Policy) -> Policy:
    """The policy for a whole run: a server that makes no markers has no other, and all are judged alike."""
    everything = frozenset(PHASES)
    return replace(policy, assertions=tuple(replace(one, phases=everything) for one in policy.assertions))


def wait_until_ready(recording: record.Recording, recipe: Recipe) -> None:
    """Until it answers, whatever that is. Raises TraceError where it ends before, or takes too long."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if ends(recording, POLL_S):
            raise TraceError(f"{recipe.name} did not start")
        with contextlib.suppress(*NO_ANSWER):
            ask(recipe, Ask("", "GET", recipe.ready))
            return
    raise TraceError(f"{recipe.name} did not answer within {READY_S:.0f} s")


def ends(recording: record.Recording, seconds: float) -> bool:
    """Whether all of it ends within this time."""
    try:
        recording.wait(seconds)
    except TimeoutError:
        return False
    return True


def stop(recording: record.Recording) -> list[str]:
    """SIGTERM, and to what the first process leaves behind, too."""
    for _ in range(2):
        recording.send_signal(signal.SIGTERM)
        if ends(recording, STOP_S / 2):
            return []
    return [f"it did not stop within {STOP_S:.0f} s of SIGTERM"]


def ask(recipe: Recipe, one: Ask) -> int:
    """→ the status of the answer."""
    client = http.client.HTTPConnection("127.0.0.1", recipe.port, timeout=ANSWER_S)
    try:
        client.request(one.method, one.path, one.body, {"Content-Type": "application/json"} if one.body else {})
        answer = client.getresponse()
        answer.read()
        return answer.status
    finally:
        client.close()


def drive(recipe: Recipe) -> Iterator[str]:
    """Send the load → each kind of request that was answered otherwise than expected."""
    for one in recipe.load:
        try:
            statuses = {ask(recipe, one) for _ in range(one.times)}
        except NO_ANSWER as error:
            yield f"{one.method} {one.path} had no answer ({error})"
            continue
        for status in statuses.difference(one.expected):
            yield f"{one.method} {one.path} answered {status}"


# What was found

class Talk(NamedTuple):
    """A way in which a server tried to leave."""

    kind: str  # egress.LEAVES or UNPROVEN
    call: str
    why: str


def findings(trace: Path) -> Iterator[Talk]:
    """Every attempt in a trace; a judgement names the first few."""
    replay = Replay(trace)
    watch = Watch(replay.descriptors, replay.living)
    for event in replay:
        if isinstance(event, Step):
            found = watch.examine(event)
            if found is not None and found.kind in (LEAVES, UNPROVEN):
                yield Talk(found.kind, event.call.name, found.why)


def describe(talk: Counter[Talk], names: Mapping[str, object]) -> list[str]:
    """Attempts by kind, most important first; addresses of our name server as the names that were asked for."""
    said: Counter[str] = Counter()
    for one, n in talk.items():
        said[sentence(one, names)] += n
    asked = [f"asks DNS for {', '.join(sorted(names))}"] if names else []
    return asked + [f"{text} ({n} times)" if n > 1 else text for text, n in said.items() if text]


def sentence(one: Talk, names: Mapping[str, object]) -> str:
    """One attempt, in words; nothing for a question to our name server: the names themselves say more."""
    if one.why.endswith("(DNS)") or one.why.startswith("to 127.0.0.53:53:"):
        return "" if names else f"`{one.call}` to a name server"
    why = re.sub(r"^to ", "", one.why)
    for name, address in names.items():
        why = re.sub(rf"^{re.escape(str(address))}:", f"{name}:", why)
    return f"`{one.call}` to {why}" if why != one.why else f"`{one.call}`: {why}"


def row(recipe: Recipe, versions: Mapping[str, str], judgement: Judgement, said: list[str], wrong: list[str]) -> Row:
    verdict = judge.INCONCLUSIVE if wrong and judgement.verdict == judge.PASS else judgement.verdict
    exposed = [f"listens at {address}" for address in judgement.exposed]
    doubts = [one.detail for one in judgement.outcomes if one.verdict == judge.INCONCLUSIVE]
    found = "; ".join([*said, *doubts, *judgement.reasons, *exposed, *wrong]) or "nothing left"
    return Row(f"{recipe.server} {versions[recipe.needs[0]]}", recipe.telemetry, shown_command(recipe),
               shown_load(recipe), verdict, found)


def shown_command(recipe: Recipe) -> str:
    return f"`{' '.join([*(f'{name}={value}' for name, value in recipe.env.items()), *recipe.command])}`"


def shown_load(recipe: Recipe) -> str:
    counts: Counter[str] = Counter()
    for one in recipe.load:
        counts[one.what] += one.times
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


# What is there

ASK_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions_in(python: str) -> dict[str, str]:
    """The versions of what the recipes need, as far as this interpreter has it."""
    wanted = sorted({name for recipe in RECIPES for name in recipe.needs})
    try:
        done = subprocess.run([python, "-c", ASK_VERSIONS, *wanted], capture_output=True, text=True)
    except OSError as error:
        raise TraceError(f"cannot run {python}: {error.strerror}") from None
    if done.returncode:
        raise TraceError(f"{python} is no Python: {last_line(done.stderr)}")
    return dict(json.loads(done.stdout))


def chosen(names: Sequence[str]) -> list[Recipe]:
    """The recipes of these names, all where none is named. Raises TraceError for one that is not there."""
    known = {recipe.name for recipe in RECIPES}
    for name in names:
        if name not in known:
            raise TraceError(f"no recipe {name!r}; expected one of {', '.join(recipe.name for recipe in RECIPES)}")
    return [recipe for recipe in RECIPES if not names or recipe.name in names]


# The document

HEAD = """# Who talks

Servers run under strace in a network namespace without a way out, and judged by the policy `sovereign`: does anything
leave the server's processes? Made by `python -m tracing who-talks` on {date}: {machine}, strace {strace};
{versions}.

A server is judged from its first system call to its last, loading included, ours too: other programs make no markers
that tell loading from serving. *Telemetry*: as the server comes, or switched off. *Command*: what was run, on the port
that the server takes by itself. *Load*: what was sent to it over HTTP; no browser ran, so what a page would do there
is not seen. After the load it had {linger:.0f} seconds to itself, then SIGTERM. *Verdict*: FAIL means that something
tried to leave, PASS that nothing did, INCONCLUSIVE that the evidence has gaps. *What was found*: each way in which it
tried. Names are those that it asked a name server for; that gave each name an address which leads nowhere, so only
the beginning of a conversation is seen.
"Listens at" is an exposure beyond this machine, not an attempt, and decides nothing.

"""
TAIL = """
mlflow sends usage telemetry by default since 3.2. `MLFLOW_DISABLE_TELEMETRY=true` or `DO_NOT_TRACK=true` switches it
off; it is off, too, where a variable such as `CI` or `PYTEST_CURRENT_TEST` is set, so a test does not show it: these
servers ran without such variables. In this version, importing mlflow, or serving a model from a folder, tries nothing;
loading a logged model by its ID (`models:/…`), logging, and the tracking server do.
"""
COLUMNS = ("server", "telemetry", "command", "load", "verdict", "what was found")


@dataclass
class Results:
    """What became of the recipes; servers by name where there is no row."""

    rows: list[Row] = field(default_factory=list)
    absent: dict[str, None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why


def document(results: Results, versions: Mapping[str, str]) -> str:
    machine = f"{platform.system()} {platform.release()} {platform.machine()}"
    text = HEAD.format(date=date.today(), machine=machine, strace=preflight.prepare("sovereign").version,
                       versions=", ".join(f"{name} {version}" for name, version in versions.items()), linger=LINGER_S)
    text += table([COLUMNS, ("---",) * len(COLUMNS), *results.rows])
    for what, names in ("Not installed here", results.absent), ("Could not be run here", results.failed):
        text += f"\n{what}: {', '.join(names)}.\n" if names else ""
    return text + TAIL


def table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in one)} |\n" for one in rows)


def main(options: Namespace) -> int:
    """`python -m tracing who-talks [NAME …] [--out FILE] [--python PATH]` → exit status."""
    recipes, python = chosen(options.names), getattr(options, "python", None) or sys.executable
    there, own = versions_in(python), versions_in(sys.executable)
    versions = there | {OWN: own[OWN]} if OWN in own else there
    isolation.enter()
    results = Results()
    with NameServer.of_this_machine() as names:
        for recipe in recipes:
            print(f"{recipe.name}: {attempt(recipe, python, names, versions, results)}", flush=True)
    if options.out is not None:
        write(options.out, document(results, versions))
    if results.failed:
        raise TraceError("; ".join(results.failed.values()))
    return 0


def attempt(recipe: Recipe, python: str, names: NameServer, versions: Mapping[str, str], results: Results) -> str:
    """Run a recipe where its packages are there, note what came of it → that in one line."""
    if not all(need in versions for need in recipe.needs):
        results.absent[recipe.server] = None
        return "not installed here"
    try:
        results.rows.append(run(recipe, python, names, versions))
    except TraceError as error:
        results.failed[recipe.server] = str(error)
        return str(error)
    return f"{results.rows[-1].verdict}: {results.rows[-1].found}"


def write(path: str | Path, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
