"""Arguments as strace writes them: C strings, descriptors with <annotations>, lists of them.

The rule to keep: text is read from left to right, token by token. What stands in a string or a path was chosen by the
traced program: it may look like anything.

https://man7.org/linux/man-pages/man1/strace.1.html
"""

import re

AT_FDCWD = -100

STRING = r'"(?:[^"\\]++|\\.)*+"'
# In paths strace escapes "<" and ">". In names of UNIX sockets it does not, but these it quotes; "->" joins two ends.
# No annotation: 1<<CAP_CHOWN.
ANNOTATION = rf'<(?<=[\dD]<)(?:[A-Z](?:[^"<>-]++|->|-|{STRING})*+|[^<>]*+(?:<[^<>]*+>)?)>'

_TOKEN = re.compile(rf"{STRING}|{ANNOTATION}|/\*.*?\*/|[(\[{{]|[)\]}}]|, ?", re.DOTALL)
_DESCRIPTOR = re.compile(rf"(-?\d{{1,10}}|AT_FDCWD)(?:({ANNOTATION})(?:\(deleted\))?)?", re.ASCII)
_QUOTED = re.compile(rf"({STRING})(?:\.\.\.)?", re.DOTALL)
_ESCAPE = re.compile(r"\\([0-7]{1,3}|x[\da-fA-F]{1,2}|.)", re.DOTALL)
_ESCAPES = re.compile(rf"(?:{_ESCAPE.pattern})+", re.DOTALL)  # a character in UTF-8 is a run of them
# Control characters, halves of surrogate pairs, what turns the direction of text: a path may hold any of them.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
_NAMED = {"n": b"\n", "t": b"\t", "r": b"\r", "v": b"\v", "f": b"\f", "a": b"\a", "b": b"\b"}


def arguments(args: str) -> list[str]:
    """Split at the commas that are in no parentheses, brackets, strings, annotations or comments."""
    parts, depth, start = [], 0, 0
    for match in _TOKEN.finditer(args):
        token = match[0]
        if token in ("(", "[", "{"):
            depth += 1
        elif token in (")", "]", "}"):
            depth -= 1
        elif token[0] == "," and depth <= 0:
            parts.append(args[start:match.start()])
            start = match.end()
    return [*parts, args[start:]] if args else []


def descriptor(argument: str) -> tuple[int, str] | None:
    """Number and annotation (as it stands there, escapes and all) of a descriptor; None if it is none."""
    match = _DESCRIPTOR.fullmatch(argument)
    if match is None:
        return None
    return AT_FDCWD if match[1] == "AT_FDCWD" else int(match[1]), (match[2] or "")[1:-1]


def text_of(argument: str) -> str | None:
    """What a C string, whole or cut short by "...", stands for, as os.fsdecode has it; None if it is none."""
    match = _QUOTED.fullmatch(argument)
    return match and unescaped(match[1][1:-1])


def unescaped(text: str) -> str:
    """What the text of a string or an annotation stands for, as os.fsdecode has it."""
    return _ESCAPES.sub(_unescaped, text)


def _unescaped(run: re.Match) -> str:
    return b"".join(map(_byte, _ESCAPE.findall(run[0]))).decode("utf-8", "surrogateescape")


def _byte(escape: str) -> bytes:
    if escape[0] in "01234567":
        return bytes([int(escape, 8) & 0xFF])
    if escape[0] == "x" and len(escape) > 1:
        return bytes([int(escape[1:], 16)])
    return _NAMED.get(escape) or escape.encode("utf-8", "surrogatepass")


def plain(text: str) -> str:
    """Text of a tracee, safe to show: what would not be seen, or do more than be seen, is escaped."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
