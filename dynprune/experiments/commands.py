"""The commands of ``dynprune``; imported only where the extra ``experiments`` is installed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

import dynprune
from dynprune.experiments.report import make_console, show


class NamedExperiments(TyperGroup):
    """Commands whose names an unknown one is answered with."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The experiment ``cmd_name``; for an unknown name the program ends with exit status 2."""
        if cmd_name not in self.commands:
            known = ", ".join(sorted(self.commands))
            raise _failed(f"experiment: expected one of {known}, got {cmd_name}")
        return self.commands[cmd_name]


app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune the unused neurons of a trained model while it serves.",
)
experiments = typer.Typer(
    cls=NamedExperiments,
    no_args_is_help=True,
    help="Train a model on real data, then serve it dense and pruned.",
)
app.add_typer(experiments, name="experiment")


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


# Without this, typer would not treat `experiments` as a group while it has a single command.
@experiments.callback()
def _experiments() -> None:
    pass


@experiments.command("mnist-cnn")
def mnist_cnn(
    epochs: Annotated[int, typer.Option(help="Rounds over the training images.")] = 20,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 0.001,
    batch_size: Annotated[int, typer.Option(help="Images per training step.")] = 64,
    seed: Annotated[int, typer.Option(help="Determines weights, order and choices.")] = 0,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder that holds mnist/*.parquet, as on the hub.")
    ] = None,
    traffic: Annotated[
        list[str] | None,
        typer.Option(help="Classes of one kind of traffic; repeatable; 0,1 and 4,9 if not given."),
    ] = None,
    traffic_prune_threshold: Annotated[
        float, typer.Option(help="Prune below this, on the traffic of a few classes.")
    ] = 0.6,
    traffic_reactivate_threshold: Annotated[
        float, typer.Option(help="Reactivate above this, on the traffic of a few classes.")
    ] = 0.7,
    init: Annotated[
        str, typer.Option(help="Initial weights: he (normal, for ReLU) or torch (PyTorch's default).")
    ] = "he",
    name: Annotated[str, typer.Option(help="Name of the run's folder.")] = "mnist-cnn",
    runs_dir: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; its own choice if not given.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Use the first N images of each split, for quick trials.")
    ] = None,
) -> None:
    """Train a CNN on MNIST; serve all classes, then the traffic of a few, then all again."""
    with _clear_errors(OSError):
        from dynprune.experiments import mnist_cnn as experiment
        from dynprune.experiments.options import DEFAULT_TRAFFIC, Options
        from dynprune.experiments.traffic import Traffic

        with _clear_errors(ValueError):
            prepared = experiment.prepare(
                Options(
                    epochs=epochs,
                    lr=lr,
                    batch_size=batch_size,
                    seed=seed,
                    data_dir=data_dir,
                    traffic=tuple(map(Traffic.parse, traffic)) if traffic else DEFAULT_TRAFFIC,
                    traffic_prune_threshold=traffic_prune_threshold,
                    traffic_reactivate_threshold=traffic_reactivate_threshold,
                    init=init,
                    name=name,
                    runs_dir=runs_dir,
                    threads=threads,
                    limit=limit,
                )
            )
        console = make_console()
        show(experiment.run(prepared, console), console)
        console.print(f"written: {runs_dir / name / 'results.json'}")


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
