"""Is there one order of what many clients did at once that explains what each was told?

A client writes down each call before it makes it and the answer after it got it.  A call
takes effect, whole or not at all, at one moment between the two; of a call that was cut
off nothing is known.  ``check`` looks for such moments.  It keeps every state that the
calls that were answered so far allow, per group of names that depend on each other; when
none is left the history is impossible, and it says of which names.

Calls that change nothing (refusals, resets, transactions that are rolled back) only say
what was true of a name, at some moment while they were waited for.  They do not make
names depend on each other.  Where such a call is explained by either of several names it
is not asked which; so the checker may accept too much there, but never refuses what can
have happened.  Parts of one transaction have different names.

The state of a name is what lives under it and what was deleted under it; branches are
told apart by a number that their creator gives them.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

NO_SUCH = "3D000"
TAKEN = "42P04"
PROTECTED = "55000"

# Refusals that other clients cause; nothing happened then.
CONTENTION = frozenset({"55006", "55P03", "40001", "40P01", "53400"})

DONE = "done"
MAX_STATES = 50_000


@dataclass(frozen=True)
class Living:
    number: int | None
    protected: bool = False


@dataclass(frozen=True)
class Slot:
    """A name: the branch that has it, and the deleted ones that had it, oldest first."""

    living: Living | None = None
    deleted: tuple[int | None, ...] = ()


EMPTY = Slot()
State = dict[str, Slot]


@dataclass(frozen=True)
class Call:
    """One call, or several in one transaction (``parts``, then ``commit`` or a rollback)."""

    kind: str
    names: tuple[str, ...]
    number: int | None = None
    parts: tuple[Call, ...] = ()
    commit: bool = True


@dataclass
class Told:
    """A call and what the client was told: DONE, a SQLSTATE, or None: it was cut off.

    Of a transaction: one answer for each part that was answered, and ``answer``, DONE if
    COMMIT was; ``sure`` says that it was cut off before that.
    """

    call: Call
    client: int
    begun: int
    answer: str | None = None
    parts: list[str] = field(default_factory=list)
    sure: bool = False
    ended: int | None = None

    def harmless(self) -> bool:
        """Nothing happened, and that needs no reason."""
        answers = (*self.parts, self.answer)
        return any(answer in CONTENTION for answer in answers) or (
            self.answer is None and (self.sure or not self.call.commit)
        )

    def __str__(self) -> str:
        what = ", ".join(
            f"{call.kind}({', '.join(call.names)})" for call in self.call.parts or (self.call,)
        )
        if self.call.parts:
            what = f"transaction ({what}) {self.parts}"
        when = f"{self.begun}..{self.ended or ''}"
        return f"{when} client {self.client}: {what} #{self.call.number}: {self.answer}"


# ---- what one call says and does ---------------------------------------------------------

Test = Callable[[Slot], bool]
Claim = tuple[str, Test]  # of a name: something that was true of it


def is_living(slot: Slot) -> bool:
    return slot.living is not None


def is_free(slot: Slot) -> bool:
    return slot.living is None


def is_protected(slot: Slot) -> bool:
    return slot.living is not None and slot.living.protected


def can_go(slot: Slot) -> bool:
    return slot.living is not None and not slot.living.protected


def was_deleted(slot: Slot) -> bool:
    return bool(slot.deleted)


def nothing_deleted(slot: Slot) -> bool:
    return not slot.deleted


def unknown(slot: Slot) -> bool:
    return slot == EMPTY


def can_go_for_good(slot: Slot) -> bool:
    return can_go(slot) or (is_free(slot) and was_deleted(slot))


def anything(slot: Slot) -> bool:
    return True


def needed(call: Call) -> list[Claim]:
    """What is true where a call is done."""
    first, last = call.names[0], call.names[-1]
    if call.kind in ("create", "create_many", "statement"):
        return [(name, is_free) for name in call.names]
    if call.kind in ("delete", "drop", "reset"):
        return [(first, can_go)]
    if call.kind == "preserve":
        return [(first, can_go), (last, is_free)]
    if call.kind == "rename":
        return [(first, is_living), (last, is_free)]
    if call.kind == "recover":
        return [(first, was_deleted), (last, is_free)]
    if call.kind == "delete_hard":
        return [(first, can_go_for_good)]
    if call.kind in ("protect", "unprotect"):
        return [(first, is_living)]
    return [(first, anything)]


def reasons(call: Call, answer: str) -> list[Claim]:
    """What explains a refusal; any of them does."""
    first, last = call.names[0], call.names[-1]
    if answer == TAKEN:
        if call.kind in ("create", "create_many", "statement"):
            return [(name, is_living) for name in call.names]
        if call.kind in ("preserve", "rename", "recover"):
            return [(last, is_living)]
    elif answer == NO_SUCH:
        if call.kind in ("delete", "drop", "reset", "preserve", "rename", "protect", "unprotect"):
            return [(first, is_free)]
        if call.kind == "delete_hard":
            return [(first, unknown)]
        if call.kind == "recover":
            return [(first, nothing_deleted)]
    elif answer == PROTECTED and call.kind in (
        "delete", "delete_hard", "drop", "reset", "preserve"
    ):  # fmt: skip
        return [(first, is_protected)]
    return []


def change(call: Call, state: State) -> None:
    """Do what a call does where it is done."""
    first, last = call.names[0], call.names[-1]
    slot = state[first]
    if call.kind in ("create", "create_many", "statement"):
        for name in call.names:
            state[name] = replace(state[name], living=Living(call.number))
    elif call.kind == "ensure":
        if slot.living is None:
            state[first] = replace(slot, living=Living(call.number))
    elif call.kind in ("protect", "unprotect"):
        assert slot.living is not None
        protected = replace(slot.living, protected=call.kind == "protect")
        state[first] = replace(slot, living=protected)
    elif call.kind == "delete":
        assert slot.living is not None
        state[first] = Slot(None, (*slot.deleted, slot.living.number))
    elif call.kind == "drop" or (call.kind == "delete_hard" and slot.living is not None):
        state[first] = replace(slot, living=None)
    elif call.kind == "delete_hard":
        state[first] = replace(slot, deleted=slot.deleted[:-1])
    elif call.kind in ("preserve", "rename"):
        state[last] = replace(state[last], living=slot.living)
        if call.kind == "rename":
            state[first] = replace(slot, living=None)
    elif call.kind == "recover":
        state[first] = replace(slot, deleted=slot.deleted[:-1])
        state[last] = replace(state[last], living=Living(slot.deleted[-1]))


def changes(told: Told) -> bool:
    """Has this call changed anything, or may it have?"""
    if not told.call.parts:
        return told.answer in (DONE, None) and told.call.kind != "reset"
    return told.call.commit and told.answer in (DONE, None)


def after(told: Told, state: State) -> State | None:
    """The state after a call that changes something; None: it could not be done here."""
    inside = dict(state)
    for part in told.call.parts or (told.call,):
        if not all(test(inside[name]) for name, test in needed(part)):
            return None
        change(part, inside)
    return inside


def said(told: Told) -> list[list[Claim]]:
    """What a call that has changed nothing says: of each list, one claim was true."""
    result = []
    answers = told.parts if told.call.parts else [told.answer or DONE]
    for part, answer in zip(told.call.parts or (told.call,), answers, strict=False):
        if answer == DONE:
            result += [[claim] for claim in needed(part)]
        else:
            result.append(reasons(part, answer))
    return result


# ---- histories -----------------------------------------------------------------------------


class History:
    """What the clients of one round were told, in the order in which they wrote it down."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.calls: list[Told] = []
        self.clock = 0

    def begin(self, client: int, call: Call) -> Told:
        with self.changed:
            self.clock += 1
            told = Told(call, client, self.clock)
            self.calls.append(told)
            self.changed.notify_all()
            return told

    def end(self, told: Told, answer: str) -> None:
        with self.changed:
            self.clock += 1
            told.ended, told.answer = self.clock, answer

    def wait_for_calls(self, number: int, timeout: float = 300) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.calls) >= number, timeout)

    def about(self, names: Iterable[str]) -> Iterator[Told]:
        wanted = set(names)
        return (told for told in self.calls if wanted.intersection(told.call.names))


class ImpossibleError(AssertionError):
    """No order of the calls explains what the clients were told."""


@dataclass(frozen=True)
class Possible:
    """One state of a group's names, and how it came to be.

    ``done``: open calls that have taken effect; ``heard``: claims of open calls that were
    true at some moment since those were begun.
    """

    slots: tuple[Slot, ...]
    done: frozenset[int] = frozenset()
    heard: frozenset[int] = frozenset()


def has_heard(number: int) -> Callable[[Possible], bool]:
    return lambda one: number in one.heard


@dataclass
class Group:
    names: tuple[str, ...]
    possible: set[Possible]


class Checker:
    def __init__(self, history: History, start: Mapping[str, Slot]) -> None:
        self.history = history
        self.group = {name: Group((name,), {Possible((slot,))}) for name, slot in start.items()}
        self.open: dict[int, Told] = {}  # those that change something
        self.claims: dict[int, Claim] = {}  # of open calls that do not
        self.said: dict[int, list[list[int]]] = {}  # begun -> numbers of its claims
        self.numbers = itertools.count()

    def run(self, seen: Mapping[str, Slot]) -> None:
        for told, begins in self._in_order():
            if changes(told):
                if begins:
                    self.open[told.begun] = told
                else:
                    self._answered(told)
            elif begins:
                self._listen(told)
            else:
                self._hear(told)
        for told in self.open.values():
            self._merge(self._reach(told.call.names))
        for group in {id(group): group for group in self.group.values()}.values():
            self._compare(group, seen)

    def _in_order(self) -> Iterator[tuple[Told, bool]]:
        """Each call when it begins (true) and, if it was answered, when it was (false)."""
        moments = []
        for told in self.history.calls:
            if told.harmless() or (told.answer is None and not changes(told)):
                continue
            moments.append((told.begun, told, True))
            if told.ended is not None:
                moments.append((told.ended, told, False))
        moments.sort(key=lambda moment: moment[0])
        return ((told, begins) for _, told, begins in moments)

    # ---- calls that change something ----

    def _answered(self, told: Told) -> None:
        group = self._merge(self._reach(told.call.names))
        group.possible = {
            replace(one, done=one.done - {told.begun})
            for one in self._until(group, lambda one: told.begun in one.done)
        }
        if not group.possible:
            self._fail(group.names, f"no state explains: {told}")
        del self.open[told.begun]
        self._split(group)

    # ---- calls that only say something ----

    def _listen(self, told: Told) -> None:
        self.said[told.begun] = []
        for either in said(told):
            numbers = []
            for claim in either:
                number = next(self.numbers)
                self.claims[number] = claim
                numbers.append(number)
                group = self.group[claim[0]]
                group.possible = {self._heard(group.names, one) for one in group.possible}
            self.said[told.begun].append(numbers)

    def _hear(self, told: Told) -> None:
        for numbers in self.said.pop(told.begun):
            self._require(told, numbers)
            for number in numbers:
                group = self.group[self.claims.pop(number)[0]]
                group.possible = {
                    replace(one, heard=one.heard - {number}) for one in group.possible
                }
                self._split(group)

    def _require(self, told: Told, numbers: list[int]) -> None:
        """One of these claims was true; if it can only be one, what follows from it."""
        explained = []
        for number in numbers:
            group = self.group[self.claims[number][0]]
            if all(number in one.heard for one in group.possible):
                return
        for number in numbers:
            group = self._merge(self._reach([self.claims[number][0]]))
            possible = self._until(group, has_heard(number))
            if possible:
                explained.append((group, possible))
        if not explained:
            self._fail(told.call.names, f"no state explains: {told}")
        if len(explained) == 1:
            group, group.possible = explained[0]

    def _heard(self, names: tuple[str, ...], one: Possible) -> Possible:
        """The same, with the open claims that are true in it."""
        state = dict(zip(names, one.slots, strict=True))
        true = {
            number
            for number, (name, test) in self.claims.items()
            if name in state and test(state[name])
        }
        return replace(one, heard=one.heard | true) if true - one.heard else one

    # ---- groups ----

    def _reach(self, names: Iterable[str]) -> set[str]:
        """All names that depend on these, through open calls and undecided states."""
        reach = set(names)
        while True:
            more = {name for known in reach for name in self.group[known].names}
            for told in self.open.values():
                if more.intersection(told.call.names):
                    more.update(told.call.names)
            if more == reach:
                return reach
            reach = more

    def _merge(self, names: set[str]) -> Group:
        groups = list({id(self.group[name]): self.group[name] for name in names}.values())
        if len(groups) == 1:
            return groups[0]
        merged = {Possible(())}
        for group in groups:
            merged = {
                Possible(one.slots + other.slots, one.done | other.done, one.heard | other.heard)
                for one in merged
                for other in group.possible
            }
            if len(merged) > MAX_STATES:
                self._fail(names, f"more than {MAX_STATES} states to look at")
        result = Group(tuple(name for group in groups for name in group.names), merged)
        for name in result.names:
            self.group[name] = result
        return result

    def _until(self, group: Group, enough: Callable[[Possible], bool]) -> set[Possible]:
        """Let open calls take effect, in any order, until it is enough."""
        calls = [
            told for told in self.open.values() if set(told.call.names).intersection(group.names)
        ]
        result = set()
        waiting = list(group.possible)
        looked_at = set(waiting)
        while waiting:
            one = waiting.pop()
            if enough(one):
                result.add(one)
                continue
            state = dict(zip(group.names, one.slots, strict=True))
            for told in calls:
                if told.begun in one.done or (new := after(told, state)) is None:
                    continue
                slots = tuple(new[name] for name in group.names)
                more = Possible(slots, one.done | {told.begun}, one.heard)
                more = self._heard(group.names, more)
                if more not in looked_at:
                    looked_at.add(more)
                    waiting.append(more)
            if len(looked_at) > MAX_STATES:
                self._fail(group.names, f"more than {MAX_STATES} states to look at")
        return result

    def _split(self, group: Group) -> None:
        """Names whose state is known do not depend on each other."""
        if len(group.possible) > 1 or len(group.names) == 1:
            return
        (one,) = group.possible
        if one.done:
            return
        for name, slot in zip(group.names, one.slots, strict=True):
            heard = frozenset(number for number in one.heard if self.claims[number][0] == name)
            self.group[name] = Group((name,), {Possible((slot,), heard=heard)})

    def _compare(self, group: Group, seen: Mapping[str, Slot]) -> None:
        found = tuple(seen[name] for name in group.names)
        if any(True for _ in self._until(group, lambda one: one.slots == found)):
            return
        shown = "\n  or ".join(str(one.slots) for one in sorted(group.possible, key=str)[:5])
        self._fail(group.names, f"there is {found}\nexpected {shown}")

    def _fail(self, names: Iterable[str], why: str) -> None:
        calls = "\n".join(str(told) for told in self.history.about(names))
        raise ImpossibleError(f"{', '.join(names)}: {why}\n{calls}")


def check(history: History, start: Mapping[str, Slot], seen: Mapping[str, Slot]) -> None:
    """Raise ImpossibleError unless some order leads from ``start`` to what was ``seen``."""
    Checker(history, start).run(seen)
