"""Reads a pickle without running code from it.

A pickle is a program. Here its instructions only act on inert values: a name in it stays a name, an
object becomes a `Record`, and the only functions called are those that the caller gives by name.
Instructions that PyTorch never writes are refused.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from qinco_jax.errors import InputError

MAX_BYTES = 2**24
MAX_INSTRUCTIONS = 10**6
MAX_INTEGER_KEY = 2**20  # an optimizer numbers its tensors; other keys are not integers
SHOWN = 80


class Name(NamedTuple):
    """A function or class that a pickle names, such as "collections OrderedDict"."""

    text: str


@dataclasses.dataclass(eq=False)
class Record:
    """An object of a pickle: the name of its class, and its state, usually a dict."""

    name: str
    state: Any = None


class Vocabulary(NamedTuple):
    """What a pickle may name and ask for; anything else is refused.

    Attributes:
      functions: by name; each takes the arguments and raises ValueError if they are invalid.
      classes: names whose objects become a `Record`.
      constants: names that are only passed on, as a `Name`.
      persistent: takes a persistent id, and raises ValueError if it is invalid.
    """

    functions: Mapping[str, Callable[..., Any]]
    classes: Collection[str]
    constants: Collection[str]
    persistent: Callable[[Any], Any]


def read(data: bytes, vocabulary: Vocabulary) -> Any:
    """The value of a pickle: None, numbers, texts, tuples, lists, dicts, `Record`, `Name`.

    Or what the vocabulary's functions return. Values may be shared, contain themselves, and be
    nested to any depth: do not walk them blindly.

    Raises:
      InputError: the pickle is damaged, too long, or asks for something that is not allowed.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"its pickle has {len(data)} bytes, more than the {MAX_BYTES} allowed")
    machine = _Machine(vocabulary)
    position: int | None = 0
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):  # noqa: B007
            if count == MAX_INSTRUCTIONS:
                raise InputError(f"its pickle has more than {count} instructions")
            machine.run(opcode.name, argument)
        if position != len(data) - 1:
            raise ValueError("bytes after the end")
        return machine.result()
    except InputError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        reason = ascii(str(error))[1:-1][:SHOWN]
        raise InputError(
            f"its pickle is damaged, or PyTorch did not write it ({reason}, by byte {position})"
        ) from error


class _Machine:
    """The stack, the marks in it, and the memo of a pickle being read."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.known = {*vocabulary.functions, *vocabulary.classes, *vocabulary.constants}

    def run(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHES:
            self.stack.append(_PUSHES[opcode]())
        elif opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _INSTRUCTIONS:
            _INSTRUCTIONS[opcode](self, argument)
        else:
            raise InputError(f"its pickle has the instruction {opcode}, which PyTorch never writes")

    def result(self) -> Any:
        if self.marked or len(self.stack) != 1:
            raise ValueError("more or less than one value at the end")
        return self.stack[0]

    def protocol(self, version: int) -> None:
        if version != 2:
            raise InputError(f"its pickle has protocol {version}; PyTorch writes protocol 2")

    def stop(self, _: None) -> None:
        pass  # `pickletools` stops here

    def mark(self, _: None) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple(self, _: None) -> None:
        items = self.since_mark()
        self.stack.append(tuple(items))

    def small_tuple(self, size: int) -> None:
        items = tuple(self.stack.pop() for _ in range(size))
        self.stack.append(items[::-1])

    def append(self, _: None) -> None:
        item = self.stack.pop()
        of(list, self.stack[-1]).append(item)

    def appends(self, _: None) -> None:
        items = self.since_mark()
        of(list, self.stack[-1]).extend(items)

    def set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        of(dict, self.stack[-1])[_key(key)] = value

    def set_items(self, _: None) -> None:
        items = self.since_mark()
        target = of(dict, self.stack[-1])
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def name(self, text: str) -> None:
        if text not in self.known:
            raise InputError(
                f"its pickle asks for {ascii(text)[:SHOWN]}, which published QINCo files never "
                "need; do not trust this file"
            )
        self.stack.append(Name(text))

    def persistent(self, _: None) -> None:
        self.stack.append(self.vocabulary.persistent(self.stack.pop()))

    def reduce(self, _: None) -> None:
        arguments, function = of(tuple, self.stack.pop()), of(Name, self.stack.pop())
        if function.text not in self.vocabulary.functions:
            raise ValueError(f"a call of {function.text}")
        self.stack.append(self.vocabulary.functions[function.text](*arguments))

    def new_object(self, _: None) -> None:
        arguments, kind = of(tuple, self.stack.pop()), of(Name, self.stack.pop())
        if kind.text not in self.vocabulary.classes or arguments:
            raise ValueError(f"a new object of {kind.text}")
        self.stack.append(Record(kind.text))

    def build(self, _: None) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record and target.state is None:
            target.state = state
        elif type(target) is dict and type(state) is dict and state.keys() == {"_metadata"}:
            pass  # in a state dict: the versions of the modules' classes
        else:
            raise ValueError(f"attributes of a {type(target).__name__}")


def of(kind: type, value: Any) -> Any:
    """The value, if it has exactly that type.

    Raises:
      ValueError: it is not.
    """
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _key(key: Any) -> Any:
    """A key of a dict; other types could be made to collide, or to hash forever."""
    if type(key) is str or (type(key) is int and 0 <= key < MAX_INTEGER_KEY):
        return key
    raise ValueError(f"{type(key).__name__} as a key")


_PUSHES: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "STOP": _Machine.stop,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple,
    "TUPLE1": lambda machine, _: machine.small_tuple(1),
    "TUPLE2": lambda machine, _: machine.small_tuple(2),
    "TUPLE3": lambda machine, _: machine.small_tuple(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
}
