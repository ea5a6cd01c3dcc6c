"""Lines of text that are written once and read as often as needed: the first ones in memory, the
others in a temporary file."""

from __future__ import annotations

from agent_branch.hints import IO, Iterator

# What is kept in memory, in characters: of all that one merge writes.
CHARACTERS = 8 << 20
# Characters that are read from a file at once.
PIECE = 1 << 17


class Room:
    """What some spools may keep in memory together."""

    __slots__ = ("left",)

    def __init__(self, left: int = CHARACTERS) -> None:
        self.left = left


class Lines:
    """``count``: how many, as who adds them says."""

    __slots__ = ("_file", "_room", "_texts", "count")

    def __init__(self, room: Room | None = None) -> None:
        self._room = room or Room()
        self._texts: list[str] = []
        self._file: IO[str] | None = None
        self.count = 0

    def add_line(self, line: str) -> None:
        self.add_text(line + "\n")
        self.count += 1

    def add_text(self, text: str) -> None:
        """Lines, each with its end, that are counted elsewhere."""
        if not text:
            return
        if self._file is None and len(text) <= self._room.left:
            self._room.left -= len(text)
            self._texts.append(text)
            return
        if self._file is None:
            from tempfile import TemporaryFile  # few merges need it, and it takes long to import

            self._file = TemporaryFile(  # noqa: SIM115
                "w+", encoding="utf-8", errors="surrogateescape", newline="\n"
            )
        self._file.write(text)

    def pieces(self) -> Iterator[str]:
        """The lines, each with its end, many at a time."""
        yield from self._texts
        if self._file is not None:
            self._file.seek(0)
            while text := self._file.read(PIECE):
                yield text if text.endswith("\n") else text + self._file.readline()

    def lines(self) -> Iterator[str]:
        """One by one, without their ends."""
        for text in self.pieces():
            yield from text[:-1].split("\n")

    def close(self) -> None:
        self._room.left += sum(map(len, self._texts))
        self._texts = []
        if self._file is not None:
            self._file.close()
            self._file = None
