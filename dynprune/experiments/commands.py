"""The commands of ``dynprune``; imported only where the extra ``experiments`` is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import dynprune
from dynprune.experiments.tables import make_console, show

if TYPE_CHECKING:
    from dynprune.experiments.options import Options

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune the unused neurons of a trained model while it serves.",
)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show versions, and which backends are on or why they are not."""
    facts = dynprune.info()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = make_console()
    console.print(_facts_table({name: fact for name, fact in facts.items() if name != "backends"}))
    console.print(_backends_table(facts["backends"]))


@app.command()
def experiment(
    name_of: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="mnist-cnn, mnist-mlp, cifar10-cnn, cifar10-vgg16, imdb-bilstm, imdb-mlp, "
            "sst2-bilstm, or all.",
        ),
    ],
    epochs: Annotated[
        int | None, typer.Option(help="Rounds over the training samples; 20 if not given.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.001,
    batch_size: Annotated[int, typer.Option(help="Samples per training step.")] = 64,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment",
            help="Train on images rotated (20 degrees), shifted, sheared, zoomed (0.2) and mirrored.",
        ),
    ] = False,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="Of Adam; by default 0.0005 for the CNNs, else none."),
    ] = None,
    usage_penalty: Annotated[
        float,
        typer.Option(
            help="Add so many times the mean |activation| of the units, relative to their layer, to the loss."
        ),
    ] = 0.0,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Train under autocast in bfloat16; weights stay in float32.")
    ] = False,
    shape: Annotated[
        str, typer.Option(help="Of an MLP: 64, 128-64, or 128-64-dropout (0.5 behind each hidden layer).")
    ] = "128-64",
    init: Annotated[
        str | None,
        typer.Option(help="Initial weights: he (normal, for ReLU) or torch (PyTorch's default)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Determines weights, order and choices.")] = 0,
    device: Annotated[str, typer.Option(help="Where to train: cpu or cuda. Serving is on the CPU.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint in the run's folder, if there is one.")
    ] = False,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained", help="Start from the weights that come with the project; no epochs if not given."
        ),
    ] = False,
    weights_dir: Annotated[Path, typer.Option(help="Folder of those weights, NAME.safetensors.")] = Path(
        "results"
    ),
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that holds mnist/*.parquet, cifar10/, imdb/, sst2/, as on the hub."),
    ] = None,
    prune_threshold: Annotated[float, typer.Option(help="Prune below this, on all classes.")] = 0.05,
    reactivate_threshold: Annotated[
        float, typer.Option(help="Reactivate above this, on all classes.")
    ] = 0.10,
    traffic: Annotated[
        list[str] | None,
        typer.Option(help="Classes of one kind of traffic, or short or long texts; repeatable."),
    ] = None,
    traffic_prune_threshold: Annotated[
        float | None, typer.Option(help="Prune below this, on the traffic of a few classes.")
    ] = None,
    traffic_reactivate_threshold: Annotated[
        float | None, typer.Option(help="Reactivate above this, on the traffic of a few classes.")
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(
            help="Serve a stream at the end, such as 'sudden:0,1>8,9>all', and record every batch; "
            "see dynprune/streams.py."
        ),
    ] = None,
    trade_off: Annotated[
        bool,
        typer.Option(
            "--trade-off", help="Sweep thresholds, and compare with static pruning at the same operations."
        ),
    ] = False,
    max_divergence: Annotated[
        float | None, typer.Option(help="Guard: the share of answers that pruning may change.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder; that of the experiment if not given.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; its own choice if not given.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use the first N samples of each split, for quick trials.")
    ] = None,
) -> None:
    """Train a model on real data; serve all classes, then the traffic of a few, then all again."""
    with _clear_errors(OSError, ValueError):
        from dynprune.experiments.catalogue import ALL, EXPERIMENTS
        from dynprune.experiments.experiment import prepare, run
        from dynprune.experiments.options import Options

        if name_of == ALL and name is not None:
            raise ValueError(f"--name: expected it with one experiment, got it with {ALL}")
        chosen = [
            Options(
                experiment=each,
                epochs=epochs,
                lr=lr,
                batch_size=batch_size,
                augment=augment,
                weight_decay=weight_decay,
                usage_penalty=usage_penalty,
                bf16=bf16,
                shape=shape,
                init=init,
                seed=seed,
                device=device,
                resume=resume,
                pretrained=pretrained,
                weights_dir=weights_dir,
                trade_off=trade_off,
                data_dir=data_dir,
                prune_threshold=prune_threshold,
                reactivate_threshold=reactivate_threshold,
                traffic=tuple(traffic or ()),
                traffic_prune_threshold=traffic_prune_threshold,
                traffic_reactivate_threshold=traffic_reactivate_threshold,
                stream=stream,
                max_divergence=max_divergence,
                name=name,
                runs_dir=runs_dir,
                threads=threads,
                limit=limit,
            )
            for each in (EXPERIMENTS if name_of == ALL else [name_of])
        ]
        console = make_console()
        if name_of == ALL and pretrained:
            chosen = _with_weights(chosen, console)
        prepared = [prepare(options) for options in chosen]
    with _clear_errors(OSError):
        for each in prepared:
            console.print(f"experiment: {each.options.experiment}")
            show(run(each, console), console)
            console.print(f"written: {each.options.run_dir / 'results.json'}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, such as runs/mnist-cnn.")],
    output: Annotated[Path, typer.Option(help="Folder for report.html, report.md and its plots.")] = Path(
        "runs/report"
    ),
) -> None:
    """Write one HTML page, and Markdown with plots, of finished runs."""
    with _clear_errors(OSError, ValueError):
        from dynprune.experiments.report import html, markdown
        from dynprune.experiments.report.read import read_results

        results = [read_results(folder) for folder in runs]
        names = [folder.resolve().name for folder in runs]
        if len(set(names)) < len(names):
            raise ValueError(f"report: expected folders with different names, got {', '.join(names)}")
        output.mkdir(parents=True, exist_ok=True)
        page = output / "report.html"
        page.write_text(html.page(results, names), encoding="utf-8")
        typer.echo(f"written: {page}")
        typer.echo(f"written: {markdown.write(results, names, output)}")


def _with_weights(chosen: list[Options], console: Console) -> list[Options]:
    """Those whose weights come with the project; the others are named."""
    found = [options for options in chosen if options.pretrained_path.is_file()]
    if not found:
        raise ValueError(f"--pretrained: expected weights in {chosen[0].weights_dir}, got none")
    for options in chosen:
        if options not in found:
            console.print(f"left out: {options.experiment}, no weights at {options.pretrained_path}")
    return found


@contextmanager
def _clear_errors(*expected: type[Exception]) -> Iterator[None]:
    """Turn the errors that a user can cause into one line and exit status 2."""
    try:
        yield
    except expected as error:
        raise _failed(str(error)) from error


def _failed(message: str) -> typer.Exit:
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table(show_header=False, box=None)
    for name, fact in facts.items():
        table.add_row(name, str(fact))
    return table


def _backends_table(backends: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("backend", "available", "reason")
    for name, backend in backends.items():
        table.add_row(name, "yes" if backend["available"] else "no", str(backend["reason"]))
    return table
