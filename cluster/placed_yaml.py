"""YAML as a tree in which every value knows its line, so that whoever checks it can say where a mistake is.

Values are not typed here: a scalar is its text and whether it stood in quotes. Whoever reads it knows what it should
be, so ``10:00`` stays a time and ``no`` a word, which YAML 1.1 would turn into 600 and ``False``.

Bounded: the size of the text, the depth, and the number of values once every alias is followed (``&a``, ``*a``), so an
alias bomb costs nothing. Tags have no meaning and are refused, so nothing can be constructed by a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

SIZE_BYTES_MAX = 4 * 1024 * 1024
VALUES_MAX = 300_000
DEPTH_MAX = 32

# libyaml's parser is ten times as fast; a PyYAML built without it has the same events.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(ValueError):
    """The text cannot be read as one YAML document within the limits. ``line`` is 1 for the first."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(line, what)
        self.line = line
        self.what = what


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar:
    line: int
    text: str
    quoted: bool
    values: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequence:
    line: int
    items: tuple["Node", ...]
    values: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """``entries`` are in the order of the file, and a key that comes twice is in it twice."""

    line: int
    entries: tuple[tuple[Scalar, "Node"], ...]
    values: int


Node = Scalar | Sequence | Mapping


def compose(content: bytes) -> Node:
    """The one document in that text, UTF-8.

    Raises:
        NotYaml: it isn't one, or a limit is passed.
    """
    if len(content) > SIZE_BYTES_MAX:
        raise NotYaml(1, f"the file is larger than {SIZE_BYTES_MAX // 1024 // 1024} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotYaml(content.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from error
    try:
        return _Composer(iter(yaml.parse(text, Loader=_LOADER))).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise NotYaml(mark.line + 1 if mark else 1, f"not YAML: {what}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 1
        raise NotYaml(line, "not YAML: a character that YAML does not allow") from error


class _Composer:
    """Builds the tree from the parser's events; ``yaml.compose`` would follow aliases and nesting without a bound."""

    def __init__(self, events: Iterator[yaml.Event]) -> None:
        self._events = events
        self._anchors: dict[str, Node | None] = {}
        self._values = 0

    def document(self) -> Node:
        for event in self._events:
            match event:
                case yaml.StreamStartEvent() | yaml.DocumentStartEvent():
                    continue
                case yaml.StreamEndEvent():
                    raise NotYaml(1, "the file is empty")
                case _:
                    node = self._node(event, 0)
                    self._end()
                    return node
        raise AssertionError("a stream of events ends with StreamEndEvent")

    def _end(self) -> None:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                raise NotYaml(_line(event), "a second document begins here; a file holds one")

    def _node(self, event: yaml.Event, depth: int) -> Node:
        line = _line(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor, line)
        if depth > DEPTH_MAX:
            raise NotYaml(line, f"nested deeper than {DEPTH_MAX} levels")
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.tag is not None:
            raise NotYaml(line, f"tags have no meaning here: {event.tag[:80]}")
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._count(1, line)
        node: Node
        match event:
            case yaml.ScalarEvent():
                node = Scalar(line=line, text=event.value, quoted=bool(event.style))
            case yaml.SequenceStartEvent():
                items = tuple(self._items(depth))
                node = Sequence(line=line, items=items, values=1 + sum(item.values for item in items))
            case _:
                entries = tuple(self._entries(depth))
                values = 1 + sum(key.values + value.values for key, value in entries)
                node = Mapping(line=line, entries=entries, values=values)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _items(self, depth: int) -> Iterator[Node]:
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                return
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[Scalar, Node]]:
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                return
            key = self._node(event, depth + 1)
            if not isinstance(key, Scalar):
                raise NotYaml(key.line, "a key must be a word")
            yield key, self._node(next(self._events), depth + 1)

    def _alias(self, anchor: str | None, line: int) -> Node:
        assert anchor is not None
        if anchor not in self._anchors:
            raise NotYaml(line, f"there is no anchor &{anchor[:80]} above")
        node = self._anchors[anchor]
        if node is None:
            raise NotYaml(line, f"the alias *{anchor[:80]} is inside what it stands for")
        self._count(node.values, line)
        return node

    def _count(self, values: int, line: int) -> None:
        self._values += values
        if self._values > VALUES_MAX:
            raise NotYaml(line, f"more than {VALUES_MAX} values, aliases followed")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1
