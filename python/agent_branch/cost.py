"""What branches cost beside one instance for each agent: arithmetic in decimals, no I/O.

A month has 730 hours, a GB 1024^3 bytes.  Money is rounded to cents, once, in each figure shown;
totals are sums of what is not rounded.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import NamedTuple

from agent_branch.errors import INVALID_PARAMETER_VALUE, ReportedError

HOURS_PER_MONTH = Decimal(730)
HOURS_PER_DAY = Decimal(24)
CENT = Decimal("0.01")
MILLIONTH = Decimal("0.000001")
MOST = Decimal(10) ** 100
DIGITS = 400  # of three such numbers multiplied, and what comes after the point


class Plan(NamedTuple):
    """What is compared: hours in which a statement runs, GB of own pages, prices."""

    hours_per_day: Decimal
    branches: Decimal
    gb_per_branch: Decimal
    instance_price_per_hour: Decimal
    gb_per_instance: Decimal
    server_price_per_month: Decimal
    price_per_compute_hour: Decimal
    price_per_gb_month: Decimal


class Line(NamedTuple):
    """A line of the report; money of a month."""

    item: str
    unit: str
    branches_quantity: Decimal | None
    branches_cost: Decimal
    instances_quantity: Decimal | None
    instances_cost: Decimal
    saved: Decimal


def check(plan: Plan) -> None:
    """Raises ReportedError (22023) for what no plan can have."""
    for name, value in plan._asdict().items():
        if not value.is_finite() or value < 0:
            raise ReportedError(
                INVALID_PARAMETER_VALUE, f'argument "{name}" must be a number not below zero'
            )
        if value > MOST:
            raise ReportedError(
                INVALID_PARAMETER_VALUE, f'argument "{name}" must be at most {MOST:.0e}'
            )
    if plan.hours_per_day > HOURS_PER_DAY:
        raise ReportedError(
            INVALID_PARAMETER_VALUE,
            'argument "hours_per_day" must be at most 24',
            detail=f"It is {plan.hours_per_day}.",
        )


def _money(value: Decimal) -> Decimal:
    return value.quantize(CENT, ROUND_HALF_UP)


def _line(
    item: str,
    unit: str,
    branches: tuple[Decimal | None, Decimal],
    instances: tuple[Decimal | None, Decimal],
) -> Line:
    quantities = [
        None if quantity is None else quantity.quantize(MILLIONTH, ROUND_HALF_UP)
        for quantity in (branches[0], instances[0])
    ]
    return Line(
        item,
        unit,
        quantities[0],
        _money(branches[1]),
        quantities[1],
        _money(instances[1]),
        _money(instances[1] - branches[1]),
    )


def report(plan: Plan) -> list[Line]:
    """Compute, storage, the server that branches share, the total, and that for each agent."""
    check(plan)
    with localcontext() as context:
        context.prec = DIGITS
        return _lines(plan)


def _lines(plan: Plan) -> list[Line]:
    hours = plan.branches * plan.hours_per_day * HOURS_PER_MONTH / HOURS_PER_DAY
    always = plan.branches * HOURS_PER_MONTH
    own = plan.branches * plan.gb_per_branch
    full = plan.branches * plan.gb_per_instance
    compute = hours * plan.price_per_compute_hour
    storage = own * plan.price_per_gb_month
    instances = always * plan.instance_price_per_hour
    disks = full * plan.price_per_gb_month
    zero = Decimal(0)
    ours = compute + storage + plan.server_price_per_month
    theirs = instances + disks
    each = plan.branches if plan.branches > 0 else Decimal(1)
    return [
        _line("compute", "hours", (hours, compute), (always, instances)),
        _line("storage", "GB months", (own, storage), (full, disks)),
        _line("server", "months", (Decimal(1), plan.server_price_per_month), (zero, zero)),
        _line("total", "", (None, ours), (None, theirs)),
        _line("per agent", "", (None, ours / each), (None, theirs / each)),
    ]
