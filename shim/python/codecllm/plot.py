"""codecllm plot: a picture of a trace (CODEC_TRACE=FILE): which weights were in memory when, what was read, how often
the program had to wait.

    codecllm plot trace.json -o out.png

Needs matplotlib. Reads traces that were cut short, too."""

import argparse
import bisect
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from codecllm._error import Error

BINS = 600  # columns of the picture
LABELS_MOST = 48  # names beside the rows
ROUNDS_MOST = 24  # with a number each
MIB = float(1 << 20)


def read_events(path: str) -> list[dict[str, Any]]:
    """The events of a trace file. Raises codecllm.Error with one line when it is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError as why:
        raise Error(f"{path}: cannot read: {why.strerror}") from None
    if not text.startswith("["):
        raise Error(f"{path}: not a trace; make one with CODEC_TRACE=FILE")
    try:
        events = json.loads(text)
    except ValueError:  # the program was killed: whole lines are good
        lines = text[: text.rfind("\n")].rstrip().rstrip("],") if "\n" in text else ""
        try:
            events = json.loads(lines + "\n]")
        except ValueError as why:
            raise Error(f"{path}: not a trace: {why}") from None
    if not all(isinstance(e, dict) and "ph" in e for e in events):
        raise Error(f"{path}: not a trace; make one with CODEC_TRACE=FILE")
    return events


@dataclass
class Trace:
    """What the picture shows. Times in seconds since the first event, sizes in bytes."""

    end: float = 0.0
    tensors: dict[str, int] = field(default_factory=dict)  #: bytes of each
    #: (time, tensor, bytes more in memory), in order
    changes: list[tuple[float, str, int]] = field(default_factory=list)
    memory: list[tuple[float, int, int]] = field(default_factory=list)  #: (time, weights, of these written)
    read: list[tuple[float, int]] = field(default_factory=list)  #: (time, stored bytes)
    waited: list[float] = field(default_factory=list)  #: a use found the weight missing
    ready: list[float] = field(default_factory=list)  #: it was there, or was decoded ahead of its use
    tokens: list[float] = field(default_factory=list)  #: a round of the program's begins
    #: of each device: (begin, end) of each copy over the link, in order
    copies: dict[Any, list[tuple[float, float]]] = field(default_factory=dict)
    lost: int = 0  #: events that the trace dropped

    def share_ready(self) -> float:
        total = len(self.waited) + len(self.ready)
        return len(self.ready) / total if total else 0.0

    def link_busy(self, begin: float, end: float) -> float:
        """The share of this time in which the link to a device was busy; of several devices the mean."""
        shares = []
        for copies in self.copies.values():
            busy, until = 0.0, begin
            for a, b in copies[bisect.bisect(copies, (begin,)) - 1 if copies[0][0] < begin else 0 :]:
                if a >= end:
                    break
                busy += max(0.0, min(b, end) - max(a, until))
                until = max(until, b)
            shares.append(busy / (end - begin) if end > begin else 0.0)
        return sum(shares) / len(shares) if shares else 0.0

    def rounds(self) -> list[tuple[float, float]]:
        """(begin, end) of each whole round."""
        return list(zip(self.tokens, self.tokens[1:]))

    def link_span(self) -> tuple[float, float]:
        """The time that link_busy is told for: all whole rounds, or from the first copy to the last."""
        if len(self.tokens) > 1:
            return self.tokens[0], self.tokens[-1]
        return min(c[0][0] for c in self.copies.values()), max(c[-1][1] for c in self.copies.values())


def spans(events: list[dict[str, Any]]) -> Iterator[tuple[float, float, str, dict[str, Any]]]:
    """(begin, end, name, args) of everything, by end; a moment begins and ends at once. A span that was never closed is
    left out."""
    open_spans: dict[Any, list[dict[str, Any]]] = {}
    found = []
    for e in events:
        phase, args = e["ph"], e.get("args", {})
        if phase == "B":
            open_spans.setdefault(e.get("tid"), []).append(e)
        elif phase == "E" and open_spans.get(e.get("tid")):
            begun = open_spans[e.get("tid")].pop()
            found.append((begun["ts"], e["ts"], begun["name"], begun.get("args", {})))
        elif phase == "X":
            found.append((e["ts"], e["ts"] + e.get("dur", 0), e["name"], args))
        elif phase in "iC":
            found.append((e["ts"], e["ts"], e["name"], args))
    return iter(sorted(found, key=lambda s: s[1]))


def understand(events: list[dict[str, Any]]) -> Trace:
    trace, inside = Trace(), {}
    first = min((e["ts"] for e in events if "ts" in e), default=0.0)
    for begin, end, name, args in spans(events):
        at, tensor, size = (end - first) / 1e6, args.get("tensor"), args.get("bytes", 0)
        key = (tensor, args.get("block", args.get("range")))
        if tensor is not None and "tensor_bytes" in args:
            trace.tensors[tensor] = max(args["tensor_bytes"], size)
        why = args.get("why", "")
        if name in ("publish", "load") and tensor is not None and key not in inside and why != "failed":
            inside[key] = size
            trace.changes.append((at, tensor, size))
        elif name in ("evict", "unmapped") or name == "drop" and why == "dropped":
            if key in inside:
                trace.changes.append((at, tensor, -inside.pop(key)))
        elif name in ("read", "copy"):
            trace.read.append((at, size))
        elif name == "fault":
            trace.waited.append((begin - first) / 1e6)
        elif name == "prefetch":
            trace.ready.append(at)
        elif name == "use":
            (trace.ready if why == "hit" else trace.waited).append(at)
        elif name == "cycle":
            trace.tokens.append(at)
        elif name == "lost":
            trace.lost += args.get("number", 0)
        elif name.endswith("memory") and "weights" in args:
            trace.memory.append((at, args["weights"], args.get("fixed", 0)))
        trace.end = max(trace.end, at)
    for e in events:
        if e["ph"] == "X" and e["name"] == "copy":
            begin = (e["ts"] - first) / 1e6
            trace.copies.setdefault(e.get("tid"), []).append((begin, begin + e.get("dur", 0) / 1e6))
    for copies in trace.copies.values():
        copies.sort()
    trace.waited.sort()
    if not trace.changes:
        raise Error("nothing was paged in this trace: no weights came into memory")
    for _, tensor, size in trace.changes:
        trace.tensors.setdefault(tensor, max(size, 1))
    return trace


def natural(name: str) -> list[Any]:
    """So that layer 10 comes behind layer 9."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def residency(trace: Trace) -> tuple[list[str], list[list[float]]]:
    """(names, for each the share of it that was in memory at each of BINS moments)."""
    names = sorted(trace.tensors, key=natural)
    now, rows, k = dict.fromkeys(names, 0), {name: [] for name in names}, 0
    for column in range(BINS):
        until = trace.end * (column + 1) / BINS
        while k < len(trace.changes) and trace.changes[k][0] <= until:
            now[trace.changes[k][1]] += trace.changes[k][2]
            k += 1
        for name in names:
            rows[name].append(min(now[name] / trace.tensors[name], 1.0))
    return names, [rows[name] for name in names]


def per_second(points: list[tuple[float, int]], end: float, bins: int) -> list[float]:
    out = [0.0] * bins
    for at, size in points:
        out[min(int(at / end * bins), bins - 1)] += size * bins / end
    return out


def draw_busy(trace: Trace, link: Any, edges: list[float]) -> None:
    """Over the bytes: when the link was busy, as a line, and of each round as a number."""
    busy = link.twinx()
    busy.stairs([100 * trace.link_busy(a, b) for a, b in zip(edges, edges[1:])], edges, color="black", linewidth=1)
    busy.set(ylabel="link busy, %", ylim=(0, 105))
    rounds = trace.rounds()
    for a, b in rounds if len(rounds) <= ROUNDS_MOST else []:
        busy.text((a + b) / 2, 3, f"{100 * trace.link_busy(a, b):.0f} %", ha="center", fontsize=7)


def draw(trace: Trace, title: str, path: str) -> None:
    """Writes the picture. Raises codecllm.Error where matplotlib is missing or the file cannot be written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as why:
        raise Error(f"matplotlib cannot be imported ({why}); install it: pip install matplotlib") from None
    names, rows = residency(trace)
    end = trace.end or 1e-6
    figure, (heat, memory, link, hits) = pyplot.subplots(
        4, 1, figsize=(13, 12), sharex=True, gridspec_kw={"height_ratios": [6, 1.6, 1.3, 1.3]}, layout="constrained"
    )
    lost = f"; {trace.lost} events were lost" if trace.lost else ""
    figure.suptitle(f"{title}: {len(names)} tensors, {end:.2f} s{lost}", fontsize=13)

    picture = heat.imshow(
        rows, aspect="auto", interpolation="nearest", cmap="Blues", vmin=0, vmax=1, extent=(0, end, len(names), 0)
    )
    figure.colorbar(picture, ax=heat, label="share of the tensor in memory", pad=0.01)
    step = max(1, -(-len(names) // LABELS_MOST))
    heat.set_yticks([i + 0.5 for i in range(0, len(names), step)], names[::step], fontsize=6)
    heat.set_title(
        "Each row is a tensor. Blue: its weights are decoded, in memory. White: only the compressed file has them.",
        fontsize=10,
        loc="left",
    )

    times = [at for at, _, _ in trace.memory]
    memory.step(
        times,
        [weights / MIB for _, weights, _ in trace.memory],
        where="post",
        color="tab:blue",
        label="decoded weights",
    )
    if any(fixed for _, _, fixed in trace.memory):
        memory.step(
            times,
            [fixed / MIB for _, _, fixed in trace.memory],
            where="post",
            color="tab:red",
            label="cannot be dropped",
        )
    memory.set(ylabel="MiB", ylim=(0, None))
    memory.set_title("Memory that the decoded weights take", fontsize=10, loc="left")
    memory.legend(fontsize=8, loc="lower right")

    bins, edges = 120, [end * i / 120 for i in range(121)]
    link.stairs([v / 1e6 for v in per_second(trace.read, end, bins)], edges, fill=True, color="tab:green")
    link.set(ylabel="MB/s", ylim=(0, None))
    told = f"Compressed bytes read: {sum(size for _, size in trace.read) / MIB:.1f} MiB in all"
    if trace.copies:
        draw_busy(trace, link, edges)
        told += f". Black: the link was busy, {100 * trace.link_busy(*trace.link_span()):.0f} % of the time"
        told += " of whole rounds" if len(trace.tokens) > 1 else ""
    link.set_title(told, fontsize=10, loc="left")

    ready = [bisect.bisect(trace.ready, b) - bisect.bisect(trace.ready, a) for a, b in zip(edges, edges[1:])]
    waited = [bisect.bisect(trace.waited, b) - bisect.bisect(trace.waited, a) for a, b in zip(edges, edges[1:])]
    hits.stairs(
        [r + w for r, w in zip(ready, waited)], edges, fill=True, color="tab:orange", label="the program had to wait"
    )
    hits.stairs(ready, edges, fill=True, color="tab:gray", label="ready before it was needed")
    hits.set(ylabel="pieces", xlabel="seconds since the first event", xlim=(0, end), ylim=(0, None))
    hits.set_title(
        f"Hit rate: {100 * trace.share_ready():.1f} % of the pieces were ready before the program needed them",
        fontsize=10,
        loc="left",
    )
    hits.legend(fontsize=8, loc="upper right")

    for axes in (heat, memory, link, hits):
        for at in trace.tokens:
            axes.axvline(at, color="black", linewidth=0.6, linestyle=":")
    if trace.tokens:
        heat.text(1, 1.01, f"dotted: {len(trace.tokens)} tokens", transform=heat.transAxes, ha="right", fontsize=9)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as why:
        raise Error(f"{path}: cannot write: {why}") from None
    finally:
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(prog="codecllm plot", description="Draws a trace that CODEC_TRACE=FILE wrote.")
    parser.add_argument("trace", help="the file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")
    args = parser.parse_args()
    try:
        trace = understand(read_events(args.trace))
        draw(trace, os.path.basename(args.trace), args.output)
    except Error as why:
        print(f"codecllm: {why}", file=sys.stderr)
        sys.exit(2)
    link = ""
    if trace.copies:
        link = f", link busy {100 * trace.link_busy(*trace.link_span()):.0f} % of the time"
        shares = [f"{100 * trace.link_busy(a, b):.0f}" for a, b in trace.rounds()]
        if 1 < len(shares) <= ROUNDS_MOST:
            link += f" (of each round {', '.join(shares)} %)"
    print(
        f"{args.output}: {len(trace.tensors)} tensors, {trace.end:.2f} s, {sum(s for _, s in trace.read) / MIB:.1f} "
        f"MiB read{link}, "
        f"{100 * trace.share_ready():.1f} % ready before they were needed"
    )


if __name__ == "__main__":
    main()
