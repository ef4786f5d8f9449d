"""A plan as lines of text, at most 100 columns wide."""

from collections.abc import Iterator, Mapping
from typing import Any

from score_sde.distributed.chips import GIB

WIDTH, COLUMN = 28, 34
GIGA, MEGA = 1e9, 1e6
Facts = Mapping[str, Any]


def lines(plan: Facts) -> Iterator[str]:
    """The whole plan."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items()) or "one device"
    of = "" if plan["chip_memory"] is None else f" of {gib(plan['chip_memory'])}"
    yield f"plan for {plan['topology']}: {plan['chips']} × {plan['chip']}{of}; mesh: {mesh}"
    again = "" if plan["remat"] in (None, "none") else f", remat {plan['remat']}"
    yield f"network {plan['network']}: {plan['parameters']:,} parameters, {plan['dtype']}{again}"
    programs = [(name, plan[name]) for name in ("training", "sampling") if plan.get(name) is not None]
    yield ""
    yield _row("", [_title(name, facts) for name, facts in programs])
    yield _row("batch", [f"{facts['batch']:,}" for _, facts in programs])
    read = [(label, [_value(show, facts) for _, facts in programs]) for label, show in _ROWS]
    for label, values in read:
        if any(values):
            yield _row(label, values)
    if any("estimate" in facts for _, facts in programs):
        yield "time is an estimate by roofline, of what the chips can do at best: no step was run"
    else:
        yield f"no estimate of time: nothing is known of what a {plan['chip']} can do"
    for name, facts in programs:
        yield from _fit(name, facts, plan)
        yield from _communication(name, facts)
        yield from facts.get("notes", [])


def _title(name: str, facts: Facts) -> str:
    return "a training step" if name == "training" else f"a batch by {facts['sampler']}"


def _row(label: str, values: list[str]) -> str:
    return f"{label:{WIDTH}}" + "".join(f"{value:>{COLUMN}}" for value in values)


def _value(show: Any, facts: Facts) -> str:
    try:
        return show(facts)
    except KeyError:  # of the other program alone, or of none that did not fit
        return ""


def gib(size: float) -> str:
    """Bytes as text."""
    return f"{size / GIB:.2f} GiB"


def _more(ratio: float) -> str:
    return f"{ratio - 1:+.1%}" if ratio < 10 else f"×{ratio:,.0f}"


def duration(seconds: float) -> str:
    """As text."""
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


_ROWS: list[tuple[str, Any]] = [
    ("a chip's arguments", lambda facts: gib(facts["memory"]["arguments"])),
    ("  results", lambda facts: gib(facts["memory"]["results"])),
    ("  temporaries", lambda facts: gib(facts["memory"]["temporaries"])),
    ("  the program itself", lambda facts: gib(facts["memory"]["code"])),
    ("  peak", lambda facts: gib(facts["memory"]["peak"])),
    ("a chip's FLOPs, model", lambda facts: f"{facts['flops']['model'] / GIGA:,.1f} G"),
    ("  compiled", lambda facts: f"{facts['flops']['compiled'] / GIGA:,.1f} G"),
    ("  a byte accessed", lambda facts: f"{facts['intensity']:.1f}"),
    ("a chip sends", lambda facts: f"{facts['sent'] / MEGA:,.1f} MB"),
    ("compute", lambda facts: duration(facts["estimate"]["compute"])),
    ("memory", lambda facts: duration(facts["estimate"]["memory"])),
    ("communication, overlapped", lambda facts: duration(facts["estimate"]["hidden"])),
    ("  not overlapped", lambda facts: duration(facts["estimate"]["exposed"])),
    ("estimate of its time", lambda facts: duration(facts["estimate"]["step"])),
    ("  bound by", lambda facts: facts["estimate"]["bound"]),
    ("model FLOPs utilisation", lambda facts: f"{facts['estimate']['utilisation']:.1%}"),
    ("passes", lambda facts: f"{facts['passes']:,}"),
    ("  one of them", lambda facts: duration(facts["estimate"]["pass"])),
    ("images a second", lambda facts: f"{facts['estimate']['images_per_second']:,.1f}"),
    ("steps in all", lambda facts: f"{facts['estimate']['steps']:,}"),
    ("  hours", lambda facts: f"{facts['estimate']['hours']:,.1f}"),
    ("  chip-hours", lambda facts: f"{facts['estimate']['chip_hours']:,.0f}"),
]


def _fit(name: str, facts: Facts, plan: Facts) -> Iterator[str]:
    if facts["fits"] is None:
        return
    yield ""
    available = plan["chip_memory"]
    needed = facts["memory"]["peak"] if "memory" in facts else facts["needed"]
    if facts["fits"]:
        yield f"{name} fits: {gib(available - needed)} of a chip are left"
        return
    yield f"{name} does not fit: it needs {gib(needed)} a chip, {gib(needed - available)} more than there are"
    yield from (f"  may help: {remedy}" for remedy in facts.get("remedies", []))


def _communication(name: str, facts: Facts) -> Iterator[str]:
    rows = facts.get("collectives")
    if not rows:
        return
    yield ""
    yield f"{f'{name}: MB sent by a chip':{WIDTH}}{'axes':>20}{'runs':>9}{'sent':>12}{'least':>12}{'':>10}"
    total = {"kind": "all", "axes": (), "runs": sum(row["runs"] for row in rows)}
    for row in (*rows, {**total, "sent": facts["sent"], "least": facts["least"]}):
        sent, least = row["sent"], row["least"]
        over = _more(sent / least) if least else ""
        cells = (row["kind"], ", ".join(row["axes"]), f"{row['runs']:,}", f"{sent / MEGA:,.2f}")
        shown = f"{least / MEGA:,.2f}" if least else ""
        yield f"{cells[0]:{WIDTH}}{cells[1]:>20}{cells[2]:>9}{cells[3]:>12}{shown:>12}{over:>10}"
