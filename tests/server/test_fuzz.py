"""The fuzzer (`python -m tests.fuzz`) for a few seconds, and proof that it sees what it looks for."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator

import numba
import numpy as np
import pytest

from kernels.compiled import OPTIONS
from server.hotpath import (
    ANSWERED, FAILED, INCOMPLETE_BODY, INCOMPLETE_HEAD, SIGNATURE, SLOW, bytes_of,
)
from tests import fuzz, serving
from tests.server.stand_in import STAND_INS, frames, stand_ins

pytestmark = pytest.mark.core
CORPUS = fuzz.corpus(with_models=False, others=stand_ins(large=False))
HOT_BYTES = len(fuzz.HOT_REQUESTS[0])


@pytest.fixture(scope="module")
def paths() -> Iterator[fuzz.Paths]:
    with fuzz.Paths(received_bytes=4096, others=stand_ins(large=False)) as paths:
        yield paths


@pytest.fixture
def fuzzer(paths: fuzz.Paths) -> fuzz.Fuzzer:
    return fuzz.Fuzzer(paths, split=True)


# --- the hot path under the fuzzer --------------------------------------------------------------

def test_mutated_requests_show_nothing_wrong_whole_and_split_at_every_byte(fuzzer: fuzz.Fuzzer):
    for requests in fuzz.batches(20_000, 1, CORPUS):
        fuzzer.run(requests)
    assert fuzzer.outcomes[ANSWERED] > 3_000 and fuzzer.outcomes[SLOW] > 8_000
    assert fuzzer.outcomes[INCOMPLETE_HEAD] > 100 and fuzzer.outcomes[INCOMPLETE_BODY] > 100
    assert fuzzer.n_compared > 300


@pytest.mark.parametrize("name", ["typed", "names", "int32"])
def test_mutated_frames_show_nothing_wrong_whole_and_split_at_every_byte(name: str):
    frame = frames()[name]
    with fuzz.Paths(received_bytes=4096, first=frame) as paths:
        fuzzer = fuzz.Fuzzer(paths, split=True)
        for requests in fuzz.batches(5_000, 1, fuzz.frame_corpus(frame)):
            fuzzer.run(requests)
    assert fuzzer.outcomes[ANSWERED] > 500 and fuzzer.outcomes[SLOW] > 1_500
    assert fuzzer.n_compared > 50


def test_mutated_requests_over_sockets_get_the_python_path_s_answers(paths: fuzz.Paths):
    rng = random.Random(2)
    requests = [fuzz.mutated(rng, CORPUS) for _ in range(300)]
    with serving.start(command=STAND_INS) as server:
        fuzz.over_sockets(server, paths, [*requests, *fuzz.HOT_REQUESTS], rng)


def test_no_index_is_out_of_bounds():
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1"}
    command = [sys.executable, "-m", "tests.fuzz", "--requests", "6000", "--seed", "3", "--sockets", "0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=serving.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bounds checked" in done.stdout


# --- the fuzzer itself --------------------------------------------------------------------------

def test_a_seed_gives_the_same_requests_every_time():
    starts = fuzz.corpus(with_models=False)
    first, second, other = (list(fuzz.batches(5000, seed, starts)) for seed in (7, 7, 8))
    assert first == second != other
    assert sum(map(len, first)) == 5000


@pytest.mark.parametrize("name", fuzz.GUARDED)
def test_a_byte_beside_a_buffer_is_found(paths: fuzz.Paths, name: str):
    assert paths.guards_are_intact()
    after = getattr(paths.work, name).view(np.uint8)[-1:]
    beyond = np.lib.stride_tricks.as_strided(after, (2,), (1,))
    beyond[1] ^= 0xFF
    assert not paths.guards_are_intact()
    beyond[1] ^= 0xFF
    assert paths.guards_are_intact()


def test_an_answer_that_is_not_counted_is_found(paths: fuzz.Paths, fuzzer: fuzz.Fuzzer,
                                                monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzzer, "_counted", lambda: 0)
    with pytest.raises(fuzz.Finding, match="not counted"):
        fuzzer.run(fuzz.HOT_REQUESTS[:1])


def test_an_answer_other_than_the_python_path_s_is_found(paths: fuzz.Paths, fuzzer: fuzz.Fuzzer,
                                                         monkeypatch: pytest.MonkeyPatch):
    request = fuzz.HOT_REQUESTS[0]
    responses = [response.replace(b"0.4", b"0.5") for response in paths.python(request)]
    monkeypatch.setattr(paths, "python", lambda data: responses)
    with pytest.raises(fuzz.Finding, match=request.hex()):
        fuzzer.run([request])


# Ways to be wrong, each with the fault that the fuzzer must see. They stand in for `hotpath.answer`.

def fail(shared, work, at, end, out_at):
    return FAILED


def look_past_the_end(shared, work, at, end, out_at):
    return SLOW if bytes_of(work.received)[end] & 1 else INCOMPLETE_HEAD


def change_the_request(shared, work, at, end, out_at):
    bytes_of(work.received)[at] = 0
    return SLOW


def end_past_the_end(shared, work, at, end, out_at):
    work.result[0], work.result[1] = end + 1, out_at + 100
    return ANSWERED


def end_before_the_end(shared, work, at, end, out_at):
    work.result[0] = end
    return INCOMPLETE_BODY


def answer_a_prefix(shared, work, at, end, out_at):
    work.result[0], work.result[1] = end, out_at + 100
    return ANSWERED if end - at > 9 else INCOMPLETE_HEAD


def forget_the_head(shared, work, at, end, out_at):
    work.result[0] = end + 1
    return INCOMPLETE_BODY if end - at == 9 else INCOMPLETE_HEAD


def give_up_early(shared, work, at, end, out_at):
    work.result[0], work.result[1] = end, out_at + 100
    return ANSWERED if end - at == HOT_BYTES else SLOW


def write_without_answer(shared, work, at, end, out_at):
    bytes_of(work.response)[out_at] = 0
    return SLOW


def write_before_the_response(shared, work, at, end, out_at):
    bytes_of(work.response)[out_at - 1] = 0
    work.result[0], work.result[1] = end, out_at + 100
    return ANSWERED


@pytest.mark.parametrize(("answer", "split", "fault"), [
    (fail, False, fuzz.EXCEPTION),
    (look_past_the_end, False, fuzz.READ_PAST_END),
    (change_the_request, False, fuzz.WROTE_REQUEST),
    (end_past_the_end, False, fuzz.BAD_PLACE),
    (end_before_the_end, False, fuzz.BAD_PLACE),
    (answer_a_prefix, True, fuzz.BAD_PREFIX),
    (forget_the_head, True, fuzz.BAD_PREFIX),
    (give_up_early, True, fuzz.PIECES_DIFFER),
    (write_without_answer, False, fuzz.WROTE_RESPONSE),
    (write_before_the_response, False, fuzz.WROTE_RESPONSE),
])
def test_a_hot_path_that_is_wrong_is_found(paths: fuzz.Paths, answer, split: bool, fault: int):
    options = {name: value for name, value in OPTIONS.items() if name != "nogil"}
    compiled = numba.cfunc(SIGNATURE, **options)(answer)
    right = paths.shared.record[0]["answer"]
    paths.shared.record[0]["answer"] = compiled.address
    try:
        with pytest.raises(fuzz.Finding, match=fuzz.FAULTS[fault]):
            fuzz.Fuzzer(paths, split).run([fuzz.HOT_REQUESTS[0]] * 20)
    finally:
        paths.shared.record[0]["answer"] = right
