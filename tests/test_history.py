"""The checker of histories: it accepts what can have happened, and nothing else."""

from __future__ import annotations

import random

import pytest
from ab_history import (
    DONE,
    EMPTY,
    NO_SUCH,
    PROTECTED,
    TAKEN,
    Call,
    History,
    ImpossibleError,
    Living,
    Slot,
    State,
    Told,
    change,
    check,
    needed,
    reasons,
)

NAMES = ("a", "b", "c")
NOTHING: State = dict.fromkeys(NAMES, EMPTY)


def seen(**slots: Slot) -> State:
    return {**NOTHING, **slots}


def begin(history: History, kind: str, *names: str, number: int | None = None) -> Told:
    return history.begin(0, Call(kind, names, number))


def call(history: History, answer: str, kind: str, *names: str, number: int | None = None) -> None:
    history.end(begin(history, kind, *names, number=number), answer)


def answers(call: Call, state: State) -> list[str]:
    """What a call may be told in this state."""
    if all(test(state[name]) for name, test in needed(call)):
        return [DONE]
    return [
        code
        for code in (NO_SUCH, PROTECTED, TAKEN)
        if any(test(state[name]) for name, test in reasons(call, code))
    ]


def test_one_after_the_other() -> None:
    history = History()
    call(history, DONE, "create", "a", number=1)
    call(history, TAKEN, "create", "a", number=2)
    call(history, DONE, "rename", "a", "b")
    call(history, DONE, "delete", "b")
    call(history, NO_SUCH, "delete", "b")
    call(history, DONE, "create", "b", number=3)
    call(history, DONE, "recover", "b", "a")
    check(history, NOTHING, seen(a=Slot(Living(1)), b=Slot(Living(3))))
    for wrong in (
        seen(a=Slot(Living(3)), b=Slot(Living(1))),
        seen(a=Slot(Living(1))),
        seen(a=Slot(Living(1)), b=Slot(Living(3), (1,))),
    ):
        with pytest.raises(ImpossibleError):
            check(history, NOTHING, wrong)


def test_two_at_once_cannot_both_create() -> None:
    history = History()
    first, second = (begin(history, "create", "a", number=number) for number in (1, 2))
    history.end(second, DONE)
    history.end(first, DONE)
    with pytest.raises(ImpossibleError, match="no state explains"):
        check(history, NOTHING, seen(a=Slot(Living(1))))


def test_calls_at_once_have_either_order() -> None:
    history = History()
    first = begin(history, "create", "a", number=1)
    second = begin(history, "rename", "a", "b")
    third = begin(history, "create", "a", number=3)
    for told in (third, second, first):
        history.end(told, DONE)
    check(history, NOTHING, seen(a=Slot(Living(3)), b=Slot(Living(1))))
    check(history, NOTHING, seen(a=Slot(Living(1)), b=Slot(Living(3))))
    with pytest.raises(ImpossibleError):
        check(history, NOTHING, seen(b=Slot(Living(1))))


def test_an_answer_must_have_had_a_reason_while_it_was_waited_for() -> None:
    history = History()
    call(history, DONE, "create", "a", number=1)
    call(history, DONE, "drop", "a")
    call(history, TAKEN, "create", "a", number=2)
    with pytest.raises(ImpossibleError):
        check(history, NOTHING, NOTHING)


def test_cut_off_means_whole_or_absent() -> None:
    history = History()
    call(history, DONE, "create", "a", number=1)
    begin(history, "rename", "a", "b")
    begin(history, "create_many", "b", "c", number=2)
    one = Slot(Living(1))
    two = Slot(Living(2))
    for possible in (
        seen(a=one), seen(b=one), seen(a=one, b=two, c=two)
    ):  # fmt: skip
        check(history, NOTHING, possible)
    for wrong in (NOTHING, seen(a=one, b=one), seen(a=one, b=two), seen(b=one, c=two)):
        with pytest.raises(ImpossibleError):
            check(history, NOTHING, wrong)


def test_transactions_are_whole() -> None:
    parts = (Call("create", ("a",), 1), Call("create", ("b",), 1))
    for commit, answers, answer, expected in (
        (True, [DONE, DONE], DONE, seen(a=Slot(Living(1)), b=Slot(Living(1)))),
        (False, [DONE, DONE], DONE, NOTHING),
        (True, [DONE, "40P01"], "40P01", NOTHING),
    ):
        history = History()
        told = history.begin(0, Call("transaction", ("a", "b"), None, parts, commit))
        told.parts += answers
        history.end(told, answer)
        check(history, NOTHING, expected)
        with pytest.raises(ImpossibleError):
            check(history, NOTHING, seen(a=Slot(Living(1))))
    history = History()
    told = history.begin(0, Call("transaction", ("a", "b"), None, parts))
    told.parts += [DONE, TAKEN]
    history.end(told, TAKEN)
    with pytest.raises(ImpossibleError):
        check(history, NOTHING, NOTHING)


def test_random_histories(rng: random.Random) -> None:
    """What a model did in some order is accepted, a branch that nobody made is not."""
    kinds = ("create", "delete", "delete_hard", "recover", "rename", "protect", "ensure")
    for _ in range(60):
        history = History()
        state: State = dict(NOTHING)
        open_calls: list[Told] = []
        for number in range(40):
            kind = rng.choice(kinds)
            names = tuple(rng.sample(NAMES, 2 if kind == "rename" else 1))
            open_calls.append(history.begin(0, Call(kind, names, number)))
            while len(open_calls) > rng.randrange(4):
                told = open_calls.pop(rng.randrange(len(open_calls)))
                history.end(told, rng.choice(answers(told.call, state)))
                if told.answer == DONE:
                    change(told.call, state)
        check(history, NOTHING, state)
        name = rng.choice(NAMES)
        with pytest.raises(ImpossibleError):
            check(history, NOTHING, {**state, name: Slot(Living(-1), state[name].deleted)})
