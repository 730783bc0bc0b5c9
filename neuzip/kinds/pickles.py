"""Pickles read without executing anything: what they would build, as inert objects.

A stack machine for the opcodes of protocols 0 to 5, after the descriptions in the standard library's
pickletools. Nothing is imported and nothing is called: a global is its name, a call is the record of a call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from neuzip.errors import CorruptFrame, TruncatedInput, UnsupportedFormat

# Opcodes take memory: so many units of about 32 bytes each, 1 where none are named, and at most 512 MiB in all. A
# checkpoint of 100 000 tensors takes about 12 million units.
_UNIT_LIMIT = 1 << 24
_UNITS = {
    **dict.fromkeys(b"]})\x8f(t\x85\x86\x87l\x91dRQP\x81\x92", 4),  # what holds others
    **dict.fromkeys(b"pqr\x94cVXUTBC\x8c\x8d\x8e\x96\x93", 3),  # memo, text, bytes
    **dict.fromkeys(b"JMGFIL\x8a\x8b", 2),  # numbers
}
_LINE_LIMIT = 4096  # of the decimal opcodes of protocol 0; converting them takes quadratic time


@dataclass(frozen=True, slots=True)
class Global:
    """A name that would be imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False, slots=True)
class Persistent:
    """An object outside the pickle, known by this."""

    key: Any


class Mapping(list[tuple[Any, Any]]):
    """A dict's items, in order; keys need not be hashable and may repeat."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Call:
    """A call that would be made, and what would be done with its result.

    state: as given to __setstate__ or __dict__. items, elements: put or appended into it; None if nothing was.
    """

    function: Any
    arguments: Any
    state: Any = None
    items: Mapping | None = None
    elements: list[Any] | None = None

    @property
    def name(self) -> str:
        """Of the function; empty if that is no global."""
        return str(self.function) if isinstance(self.function, Global) else ""


class Machine:
    """Reads one pickle from `data`, which begins at `start`."""

    def __init__(self, data: bytes | memoryview, start: int = 0) -> None:
        self._data = memoryview(data)
        self.position = start
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object. `position` is then the first byte after the pickle.

        Raises CorruptFrame, TruncatedInput; UnsupportedFormat for opcodes that no checkpoint has.
        """
        data, actions, left = self._data, _ACTIONS, _UNIT_LIMIT
        while left > 0:
            if self.position >= len(data):
                raise TruncatedInput("the pickle ends without a stop", offset=self.position)
            code = data[self.position]
            self.position += 1
            left -= _UNITS.get(code, 1)
            if code == _STOP:
                return self._pop()
            action = actions.get(code)
            if action is None:
                raise UnsupportedFormat(f"pickle opcode {code:#04x}", offset=self.position - 1)
            action(self)
        raise UnsupportedFormat("a pickle of too many objects", offset=self.position)

    # Bytes.

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise TruncatedInput("the pickle ends in an argument", offset=self.position)
        taken = bytes(self._data[self.position : end])
        self.position = end
        return taken

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _line(self, limit: int = _LINE_LIMIT) -> bytes:
        head = bytes(self._data[self.position : self.position + limit])
        line, newline, _ = head.partition(b"\n")
        if not newline:
            if len(head) < limit:
                raise TruncatedInput("the pickle ends in a line", offset=self.position)
            self._corrupt("a line is too long")
        self.position += len(line) + 1
        return line

    def _text(self, count: int) -> str:
        return self._decoded(self._take(count), "utf-8", "surrogatepass")

    def _decoded(self, data: bytes, encoding: str, errors: str = "strict") -> str:
        try:
            return data.decode(encoding, errors)
        except UnicodeDecodeError:
            self._corrupt("text is not encoded as it should be")

    def _decimal(self, line: bytes) -> int:
        try:
            return int(line)
        except ValueError:
            self._corrupt("not a decimal number")

    def _corrupt(self, what: str) -> NoReturn:
        raise CorruptFrame(f"the pickle is broken: {what}", offset=self.position)

    # The stack.

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            self._corrupt("the stack is empty")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            self._corrupt("the stack is empty")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self._marks:
            self._corrupt("a mark is missing")
        items, self._stack = self._stack, self._marks.pop()
        return items

    # Opcodes.

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def duplicate(self) -> None:
        self.push(self._top())

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            self._corrupt("the stack is empty")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self.push(items)

    def mapping_to_mark(self) -> None:
        mapping = Mapping()
        self._put_pairs(mapping, self._to_mark())
        self.push(mapping)

    def append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Call):
            if target.elements is None:
                target.elements = []
            target = target.elements
        if not isinstance(target, list) or isinstance(target, Mapping):
            self._corrupt("elements for what is no list")
        target.extend(items)

    def put_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Call):
            if target.items is None:
                target.items = Mapping()
            target = target.items
        self._put_pairs(target, items)

    def _put_pairs(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, Mapping) or len(items) % 2:
            self._corrupt("items for what is no dict")
        target.extend(zip(items[::2], items[1::2], strict=True))

    def memoize(self, number: int) -> None:
        self._memo[number] = self._top()

    def recall(self, number: int) -> None:
        if number not in self._memo:
            self._corrupt(f"nothing is remembered as {number}")
        self.push(self._memo[number])

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self._corrupt("the name of a global is no text")
        self.push(Global(module, name))

    def call(self) -> None:
        arguments = self._pop()
        self.push(Call(self._pop(), arguments))

    def call_with_keywords(self) -> None:
        keywords, arguments, function = self._pop(), self._pop(), self._pop()
        self.push(Call(function, (arguments, keywords)))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Call):
            target.state = state

    def text_global(self) -> None:
        module, name = self._decoded(self._line(), "utf-8"), self._decoded(self._line(), "utf-8")
        self.push(Global(module, name))

    def text_integer(self) -> None:
        line = self._line()
        self.push({b"00": False, b"01": True}[line] if line in (b"00", b"01") else self._decimal(line))

    def text_float(self) -> None:
        try:
            self.push(float(self._line()))
        except ValueError:
            self._corrupt("not a number")


_U8, _U16, _I32, _U32, _U64 = (struct.Struct(form) for form in ("<B", "<H", "<i", "<I", "<Q"))
_F64 = struct.Struct(">d")
_STOP = ord(".")


def _long(machine: Machine, form: struct.Struct) -> None:
    machine.push(int.from_bytes(machine._take(max(0, machine._number(form))), "little", signed=True))


def _text(form: struct.Struct) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine._text(machine._number(form)))


def _bytes(form: struct.Struct) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine._take(max(0, machine._number(form))))


def _string(form: struct.Struct) -> Callable[[Machine], None]:
    """Of Python 2: bytes that stand for text."""
    return lambda machine: machine.push(machine._take(max(0, machine._number(form))).decode("latin-1"))


_ACTIONS: dict[int, Callable[[Machine], None]] = {
    ord(code): action
    for code, action in {
        # What says nothing about the object.
        "\x80": lambda m: m._take(1),
        "\x95": lambda m: m._take(8),
        # Constants.
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(m._number(_I32)),
        "K": lambda m: m.push(m._number(_U8)),
        "M": lambda m: m.push(m._number(_U16)),
        "I": Machine.text_integer,
        "L": lambda m: m.push(m._decimal(m._line().rstrip(b"L"))),
        "\x8a": lambda m: _long(m, _U8),
        "\x8b": lambda m: _long(m, _I32),
        "F": Machine.text_float,
        "G": lambda m: m.push(m._number(_F64)),
        "V": lambda m: m.push(m._decoded(m._line(), "raw-unicode-escape")),
        "X": _text(_U32),
        "\x8c": _text(_U8),
        "\x8d": _text(_U64),
        "U": _string(_U8),
        "T": _string(_I32),
        "B": _bytes(_U32),
        "C": _bytes(_U8),
        "\x8e": _bytes(_U64),
        "\x96": _bytes(_U64),
        # Collections.
        "(": Machine.mark,
        ")": lambda m: m.push(()),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push(Mapping()),
        "\x8f": lambda m: m.push([]),
        "t": lambda m: m.push(tuple(m._to_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "l": lambda m: m.push(m._to_mark()),
        "\x91": lambda m: m.push(m._to_mark()),
        "d": Machine.mapping_to_mark,
        "a": lambda m: m.append([m._pop()]),
        "e": lambda m: m.append(m._to_mark()),
        "\x90": lambda m: m.append(m._to_mark()),
        "s": lambda m: m.put_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m.put_items(m._to_mark()),
        # The stack and the memo.
        "0": Machine.pop,
        "1": lambda m: (m._to_mark(), None)[1],
        "2": Machine.duplicate,
        "p": lambda m: m.memoize(m._decimal(m._line())),
        "q": lambda m: m.memoize(m._number(_U8)),
        "r": lambda m: m.memoize(m._number(_U32)),
        "\x94": lambda m: m.memoize(len(m._memo)),
        "g": lambda m: m.recall(m._decimal(m._line())),
        "h": lambda m: m.recall(m._number(_U8)),
        "j": lambda m: m.recall(m._number(_U32)),
        # Names and calls.
        "c": Machine.text_global,
        "\x93": Machine.stack_global,
        "P": lambda m: m.push(Persistent(m._decoded(m._line(), "utf-8"))),
        "Q": lambda m: m.push(Persistent(m._pop())),
        "R": Machine.call,
        "\x81": Machine.call,
        "\x92": Machine.call_with_keywords,
        "b": Machine.build,
    }.items()
}
