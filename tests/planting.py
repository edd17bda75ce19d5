"""Plant a thread in a Python program that tries on command what it should not be able to do (see `planted`)."""

import os
import select
from pathlib import Path

PLANTED = Path(__file__).resolve().parent / "planted"
WAIT_S = 30.0


class Plant:
    """What a program must be started with (`env`), and then a way to tell the thread in it what to try."""

    def __init__(self, folder: Path):
        places = folder / "commands", folder / "answers"
        folder.mkdir(exist_ok=True)
        for place in places:
            os.mkfifo(place, 0o600)
        self._commands, self._answers = (os.open(place, os.O_RDWR) for place in places)
        self.env = {"PLANTED": ":".join(map(str, places)),
                    "PYTHONPATH": os.pathsep.join(filter(None, [str(PLANTED), os.environ.get("PYTHONPATH")]))}

    def __enter__(self) -> "Plant":
        return self

    def __exit__(self, *_) -> None:
        os.close(self._commands)
        os.close(self._answers)

    def ask(self, attempt: str, argument: object = "") -> str:
        """"done", or the name of the error that it got."""
        os.write(self._commands, f"{attempt} {argument}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            assert select.select([self._answers], [], [], WAIT_S)[0], f"no answer to {attempt}"
            answer += os.read(self._answers, 1)
        return answer.decode().strip()
