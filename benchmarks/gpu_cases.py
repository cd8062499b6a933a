"""The ops and models timed on a GPU, a JSON line for each case; ``python -m benchmarks.gpu_cases linear``.

Each of our contestants is checked before it is timed. Contestants take turns; times are medians, in
milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import MODELS, Model

Run = Callable[[], Any]
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}


def milliseconds(run: Run, calls: int, device: str) -> float:
    """Of one of ``calls`` calls."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / calls
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) * 1e3 / calls


def alternate(runs: dict[str, Run], device: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each of ``runs``, which take turns; a sample lasts about 2 ms."""
    calls = {}
    for name, run in runs.items():
        run()
        calls[name] = max(1, min(100, int(2 / max(1e-3, milliseconds(run, 3, device)))))
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            samples[name].append(milliseconds(run, calls[name], device))
    return {name: median(values) for name, values in samples.items()}


def captured(run: Run) -> tuple[Run, Any]:
    """The run as a CUDA graph, and what it has written after one replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        written = run()
    graph.replay()
    return graph.replay, written


def captured_or_why(run: Run) -> tuple[Run, Any] | str:
    """As :func:`captured`, or why it cannot be one."""
    try:
        return captured(run)
    except Exception as error:
        torch.cuda.synchronize()
        return f"{type(error).__name__}: {error}"[:300]


def served_graph(run: Callable[[Tensor], Tensor], x: Tensor) -> Run | str:
    """As a caller needs a graph: its input is copied in and its output out. Or why it cannot be one."""
    place = x.clone()
    graph = captured_or_why(lambda: run(place))
    if isinstance(graph, str):
        return graph
    replay, written = graph

    def serve() -> Tensor:
        place.copy_(x)
        replay()
        return written.clone()

    return serve


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value expected."""
    wide = expected.float()
    return float((actual.float() - wide).abs().max() / wide.abs().max().clamp(min=1e-30))


def tolerance(dtype: torch.dtype, device: str) -> float:
    """What rounding explains. cuDNN may take products of float32 in tf32, and deep models add them up."""
    rough = 2e-2 if device == "cuda" and torch.backends.cudnn.allow_tf32 else 0.0
    return max(rough, TOLERANCE[dtype])


def compiled_or_why(module: nn.Module, x: Tensor) -> Run | str:
    """``module`` under ``torch.compile``, or why that failed: the others are still worth their times.

    Its weights are parameters and ``x`` has a fixed address, so that no call copies them into the graph.
    """
    try:
        torch._dynamo.reset()
        torch._dynamo.mark_static_address(x)
        compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)
        compiled(x)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return lambda: compiled(x)


def measure(
    suite: str,
    case: str,
    runs: dict[str, Run],
    alike: tuple[str, str],
    dtype: torch.dtype,
    device: str,
    rounds: int,
    compact: tuple[nn.Module, Tensor] | None = None,
    as_graphs: Mapping[str, Run] | None = None,
) -> dict[str, Any]:
    """Times of ``runs``, eager and (on a GPU) captured; ``alike`` are ours and what it must agree with.

    ``compact``, a module and its input, is also timed under ``torch.compile(mode="reduce-overhead")``;
    ``as_graphs`` are runs that are graphs already.
    """
    found: dict[str, Any] = {"suite": suite, "case": case, "dtype": str(dtype).removeprefix("torch.")}
    expected = runs[alike[1]]().clone()
    everything = {**runs, **(as_graphs or {})}
    outputs = {name: run() for name, run in everything.items() if name.startswith(alike[0])}
    if device == "cuda":
        for name, run in runs.items():
            graph = captured_or_why(run)
            if isinstance(graph, str):
                found.setdefault("not captured", {})[name] = graph
            else:
                everything[f"{name}, graph"] = graph[0]
                if name in outputs:
                    outputs[f"{name}, graph"] = graph[1]
    differences = {name: difference(output, expected) for name, output in outputs.items()}
    found["difference"] = max(differences.values())
    wrong = {n: value for n, value in differences.items() if not value <= tolerance(dtype, device)}
    if wrong:
        return found | {"error": f"wrong result, not timed: {wrong}"}
    if compact is not None and device == "cuda":
        compiled = compiled_or_why(*compact)
        if isinstance(compiled, str):
            found["not compiled"] = compiled
        else:
            everything["compact, compiled"] = compiled
    return found | {"ms": alternate(everything, device, rounds)}


def full_counts(device: str, units: int, depth: int) -> dict[str, Tensor]:
    """Counts in device memory that say that all is there: as for a captured plan, our own kernel serves."""
    options: dict[str, Any] = {"dtype": torch.int32, "device": device}
    return {
        "unit_count": torch.tensor([units], **options),
        "depth_count": torch.tensor([depth], **options),
    }


def linear_cases(device: str, small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """A layer with half, a quarter or none of its outputs and inputs gone, against the compact one."""
    dtype, rounds = (torch.float32, 3) if small else (torch.bfloat16, 15)
    for rows, width in [(3, 40)] if small else [(64, 1024), (512, 4096), (4096, 1024), (4096, 4096)]:
        for share in (1.0, 0.5, 0.25):

            def run(rows: int = rows, width: int = width, share: float = share) -> dict[str, Any]:
                n = round(width * share)
                options = {"device": device, "dtype": dtype}
                x, w = torch.randn(rows, width, **options), torch.randn(width, width, **options) / width**0.5
                part, weight = x[:, :n].contiguous(), w[:n, :n].contiguous()
                bias = torch.randn(width, device=device)
                cast, usage = bias.to(dtype), torch.zeros(4, n, dtype=torch.float64, device=device)
                op = torch.ops.dynprune.linear.default
                runs = {
                    "dense": lambda: F.relu(F.linear(x, w, cast)),
                    "compact": lambda: F.relu(F.linear(part, weight, cast[:n])),
                    "ours": lambda: op(part, weight, bias[:n], activation="relu"),
                    "ours, usage": lambda: op(part, weight, bias[:n], activation="relu", usage=usage),
                }
                if device == "cuda":
                    counts = full_counts(device, n, n)
                    runs["ours, counted"] = lambda: op(part, weight, bias[:n], activation="relu", **counts)
                layer = nn.Linear(n, n, **options)
                layer.load_state_dict({"weight": weight, "bias": cast[:n]})
                compact = (nn.Sequential(layer, nn.ReLU()), part) if share == 0.5 else None
                name = f"{rows} x {width}, {share:.0%}"
                return measure("linear", name, runs, ("ours", "compact"), dtype, device, rounds, compact)

            yield run


def conv2d_cases(device: str, small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """3x3 convolutions, channels last."""
    dtype, rounds = (torch.float32, 3) if small else (torch.bfloat16, 15)
    for batch, channels, size in [(2, 24, 5)] if small else [(64, 64, 32), (128, 128, 16), (256, 512, 8)]:
        for share in (1.0, 0.5):

            def run(
                batch: int = batch, channels: int = channels, size: int = size, share: float = share
            ) -> dict[str, Any]:
                n = round(channels * share)
                last = {"device": device, "dtype": dtype}
                memory = {"memory_format": torch.channels_last}
                x = torch.randn(batch, channels, size, size, **last).contiguous(**memory)
                w = (torch.randn(channels, channels, 3, 3, **last) / (9 * channels) ** 0.5).contiguous(
                    **memory
                )
                part, weight = x[:, :n].contiguous(**memory), w[:n, :n].contiguous(**memory)
                bias = torch.randn(channels, device=device)
                cast = bias.to(dtype)
                op = torch.ops.dynprune.conv2d.default
                runs = {
                    "dense": lambda: F.relu(F.conv2d(x, w, cast, padding=1)),
                    "compact": lambda: F.relu(F.conv2d(part, weight, cast[:n], padding=1)),
                    "ours": lambda: op(part, weight, bias[:n], [1, 1], [1, 1], activation="relu"),
                }
                if device == "cuda":
                    counts = full_counts(device, n, n)
                    runs["ours, counted"] = lambda: op(
                        part, weight, bias[:n], [1, 1], [1, 1], activation="relu", **counts
                    )
                layer = nn.Conv2d(n, n, 3, padding=1, **last)
                layer.load_state_dict({"weight": weight, "bias": cast[:n]})
                module = nn.Sequential(layer.to(**memory), nn.ReLU())
                compact = (module, part) if share == 0.5 and batch == 128 else None
                name = f"{batch} x {channels} x {size}, {share:.0%}"
                return measure("conv2d", name, runs, ("ours", "compact"), dtype, device, rounds, compact)

            yield run


def lstm_cases(device: str, small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """A bidirectional layer against PyTorch's of the compact size, and dense of twice the units."""
    from dynprune.plan.lstm import packed_gates

    dtype, rounds = (torch.float32, 3) if small else (torch.bfloat16, 7)
    for hidden, batch, steps in [(8, 2, 4)] if small else [(64, 64, 200), (128, 64, 200), (256, 64, 200)]:

        def run(hidden: int = hidden, batch: int = batch, steps: int = steps) -> dict[str, Any]:
            compact, dense = (
                nn.LSTM(128, units, bidirectional=True, device=device, dtype=dtype)
                for units in (hidden, 2 * hidden)
            )
            x = torch.randn(steps, batch, 128, device=device, dtype=dtype)
            weights, biases = [], []
            for name in ("l0", "l0_reverse"):
                parts = [getattr(compact, f"{kind}_{name}").detach() for kind in ("weight_ih", "weight_hh")]
                both = sum(getattr(compact, f"bias_{kind}_{name}").detach().float() for kind in ("ih", "hh"))
                weights.append(packed_gates(*parts))
                biases.append(torch.stack([both, both]).view(2, 4, hidden).contiguous())
            runs = {
                "dense": lambda: dense(x)[0],
                "compact": lambda: compact(x)[0],
                "ours": lambda: torch.ops.dynprune.lstm.default(x, weights, biases)[0],
            }
            return measure(
                "lstm", f"{steps} x {batch} x {hidden}", runs, ("ours", "compact"), dtype, device, rounds
            )

        yield run


def model_cases(device: str, small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """Whole models with 70% of each layer's units, about half of the operations.

    As they serve, captured, and as plain modules; at batch 1 and 256.
    """
    wanted = ("mlp",) if small else ("vgg16-bn", "bilstm-1")
    batches = (2,) if small else (256, 1)

    def run(model: Model, batch: int) -> dict[str, Any]:
        import dynprune

        dense, x = model.make(batch)
        dense, x = dense.to(device), x.to(device)
        memory = {"memory_format": torch.channels_last} if x.dim() == 4 else {}
        dense, x = dense.to(**memory), x.to(**memory)
        fast = dynprune.accelerate(dense, x, dynprune.Config(compensation="none"))
        fast.freeze()
        for name, group in fast.groups.items():
            fast.set_active(name, torch.arange(group.units) < 0.7 * group.units)
        compact = fast.materialize(compensate=False).to(**memory)
        graph = fast.capture(x)
        runs: dict[str, Run] = {
            "dense": lambda: dense(x),
            "compact": lambda: compact(x),
            "ours": lambda: fast(x),
        }
        name, rounds = f"{model.name}, batch {batch}", 3 if small else 9
        to_compile = (compact, x) if x.dim() == 4 and batch > 1 else None  # LSTMs stay eager there
        as_graphs: dict[str, Run] = {"ours, served graph": lambda: graph(x)}  # under which units may flip
        served = served_graph(dense, x) if device == "cuda" else ""
        if not isinstance(served, str):  # else "dense, graph" is not there either, and says why
            as_graphs["dense, served graph"] = served
        return measure(
            "models",
            name,
            runs,
            ("ours", "compact"),
            torch.float32,
            device,
            rounds,
            to_compile,
            as_graphs,
        )

    for model in MODELS:
        for batch in batches:
            if model.name in wanted:
                yield lambda model=model, batch=batch: run(model, batch)


def flip_cases(device: str, small: bool) -> Iterator[Callable[[], dict[str, Any]]]:
    """A tenth of a network's units flips under a captured graph, which then goes on."""

    def run() -> dict[str, Any]:
        import dynprune

        model = next(m for m in MODELS if m.name == ("mlp" if small else "vgg16-bn"))
        dense, x = model.make(2 if small else 256)
        dense, x = dense.to(device), x.to(device)
        fast = dynprune.accelerate(dense, x, dynprune.Config(compensation="none"))
        fast.freeze()
        graph = fast.capture(x)
        sets = [
            {name: torch.arange(g.units) % 10 != skipped for name, g in fast.groups.items()}
            for skipped in (0, 5)
        ]
        plans, expected = [], []
        for chosen in sets:
            for name, mask in chosen.items():
                fast.set_active(name, mask)
            graph(x)
            plans.append(fast._controller.plan)
            expected.append(fast(x).clone())
        found: dict[str, Any] = {"suite": "flips", "case": model.name, "dtype": "float32"}
        turn = iter(range(1 << 30))

        def flip() -> None:
            graph._plan.load(plans[next(turn) % 2])

        off = []
        for each in expected:
            flip()
            off.append(difference(graph(x), each))
        found["difference"] = max(off)
        if not found["difference"] <= tolerance(torch.float32, device):
            return found | {"error": "wrong result after flips, not timed"}
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")  # whatever waits for the device fails
        try:
            flip()
            graph(x)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        runs: dict[str, Run] = {"flip": flip, "forward": lambda: graph(x)}
        return found | {"ms": alternate(runs, device, 15)}

    yield run


SUITES = {
    "linear": linear_cases,
    "conv2d": conv2d_cases,
    "lstm": lstm_cases,
    "models": model_cases,
    "flips": flip_cases,
}


def main() -> None:
    """Print a line for each case of the suites; a case that fails says so, and the others go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", choices=list(SUITES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="one small case each, to see that it runs")
    options = parser.parse_args()
    torch.manual_seed(0)
    import dynprune.ops  # noqa: F401  registers the ops

    for suite in options.suites:
        for number, case in enumerate(SUITES[suite](options.device, options.small)):
            try:
                with torch.inference_mode():
                    found = case()
            except Exception as error:
                where = traceback.format_exc().splitlines()[-8:]
                found = {
                    "suite": suite,
                    "case": f"number {number}",
                    "error": repr(error)[:500],
                    "where": where,
                }
            print(json.dumps(found), flush=True)
            if any(text in found.get("error", "") for text in ("CUDA error", "[CUDA]")):
                sys.exit(1)  # what comes after it in this process would fail by it


if __name__ == "__main__":
    main()
