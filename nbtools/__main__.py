"""The command line: python -m nbtools run | sweep | defend | doctor | bench | address."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from nbtools.defend.options import Numbers, Size, check_words
from nbtools.series.address import address


class Refused(click.ClickException):
    """Bad input: one message, exit code 2, before any work."""

    exit_code = 2


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_DATA = click.option("--data", metavar="DIR", type=_FOLDER, help="Folder that holds the data sets.")
_MODELS = click.option("--models", metavar="DIR", type=_FOLDER, help="Folder of trained models, looked into first.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Notebooks on backdoored neural networks: run them, clean a model of yours, check this machine, measure."""


@main.command()
@click.argument("names", metavar="[NOTEBOOK]...", nargs=-1)
@click.option("--profile", metavar="NAME", help="Scale: quick, laptop or paper. Default: quick, or paper on a GPU.")
@click.option("-p", "given", metavar="NAME VALUE", nargs=2, multiple=True, help="Set a parameter of the notebooks.")
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--write", is_flag=True, help="Also write the executed notebooks that are committed, with a stamp.")
@click.option("--keep-going", is_flag=True, help="Run the remaining notebooks after one has failed.")
@_DATA
@_MODELS
@click.option("--notebooks", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), hidden=True)
def run(
    names: tuple[str, ...],
    profile: str | None,
    given: tuple[tuple[str, str], ...],
    out: Path | None,
    write: bool,
    keep_going: bool,
    data: Path | None,
    models: Path | None,
    folder: Path | None,
) -> None:
    """Run notebooks in order, all of them when none is named.

    A notebook is named by its stem (02_spectral_norm), its number (02) or its file; a file that was edited runs as it
    lies. Results go to --out, by default runs/<profile>/<time>: the executed notebooks, and the rows that they
    save.

    \b
    python -m nbtools run                                  the whole series
    python -m nbtools run 06 --profile quick -p draws 2    one notebook, one parameter changed
    """
    from nbtools.series import notebooks
    from nbtools.series.edits import take_edits
    from nbtools.series.plan import plan as make_plan

    _settle_folders(data, models)
    try:
        folder = (folder or notebooks.source_folder()).resolve()
        plan = make_plan(names, profile, given, folder, write)
        from nbtools.lab.cluster import check_scratch
        from nbtools.series.run import new_folder, run_series

        check_scratch()
        for notebook, script in plan.edits.items():
            take_edits(notebook, script)
        if out is None:
            out = new_folder(plan.profile, folder.parent.parent)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # really tried: permission bits do not tell
            pass
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    except KeyboardInterrupt:
        click.echo("Interrupted before the first notebook.")
        sys.exit(130)
    for note in plan.notes:
        click.echo(note)
    try:
        outcome = run_series(plan, out.resolve(), write=write, keep_going=keep_going, say=click.echo)
    except KeyboardInterrupt:
        click.echo("Interrupted; what had been finished stays.")
        sys.exit(130)
    _report(out, plan.sources, outcome.done, outcome.interrupted, write)
    sys.exit(130 if outcome.interrupted else 1 if outcome.failed else 0)


def _settle_folders(data: Path | None, models: Path | None) -> None:
    """The folders of data, models and cache in their variables, whole, for kernels and workers in other folders."""
    for name, given in (("NBTOOLS_DATA", data), ("NBTOOLS_MODELS", models)):
        if given is not None:
            os.environ[name] = str(given)
    for name in ("NBTOOLS_DATA", "NBTOOLS_MODELS", "NBTOOLS_CACHE"):
        if value := os.environ.get(name):
            os.environ[name] = str(Path(value).expanduser().absolute())


def _report(out: Path, sources: list[Path], done: list[str], interrupted: bool, write: bool) -> None:
    """Say what is finished, and where executed notebooks and rows lie."""
    if interrupted or len(done) < len(sources):
        how = "Interrupted. " if interrupted else ""
        click.echo(f"{how}Finished: {', '.join(done) or 'none'} ({len(done)} of {len(sources)}).")
    shown = Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out
    if done:
        click.echo(f"Executed notebooks  {shown / '*.ipynb'}" + (", also in notebooks" if write else ""))
    click.echo(f"Rows                {shown / '*.csv' if any(out.glob('*.csv')) else 'none were saved'}")
    for path in sorted([*out.glob("*.failed.ipynb"), *out.glob("*.partial.ipynb")]):
        click.echo(f"To look at          {shown / path.name}")


_FILE = click.Path(path_type=Path)


@main.command()
@click.option(
    "--model", required=True, metavar="FILE", type=_FILE, help="Your checkpoint: safetensors or a state dict."
)
@click.option(
    "--arch", required=True, metavar="NAME", help="resnet18, ..., torchvision/NAME, timm/NAME, PACKAGE.MODULE:FUNCTION."
)
@click.option("--images", required=True, metavar="FOLDER", type=_FILE, help="Clean images, a folder for each class.")
@click.option(
    "--out", required=True, metavar="FILE", type=_FILE, help="The repaired checkpoint; page and card beside it."
)
@click.option("--defence", default="suspiciousness", show_default=True, metavar="NAME", help="Which defence.")
@click.option("-s", "settings", metavar="NAME VALUE", nargs=2, multiple=True, help="Set a field of the defence.")
@click.option(
    "--mean", metavar="R,G,B", type=Numbers(3, float, 0, 1), help="Of the normalisation, of pixels in [0, 1]."
)
@click.option("--std", metavar="R,G,B", type=Numbers(3, float, 1e-3, 2), help="Of the normalisation.")
@click.option(
    "--strides", metavar="A,B,C,D,E", type=Numbers(5, int, 1, 4), help="Of stem and stages. Default: 1,1,2,2,2."
)
@click.option(
    "--size", metavar="PIXELS", type=Size(), help="Resize to 32, or 64x48. Default: the size that most images have."
)
@click.option("--key", metavar="NAME", help="Where the weights lie in the file, if it holds several sets.")
@click.option(
    "--held-back", default=0.2, show_default=True, metavar="SHARE", help="Of each class, to measure with alone."
)
@click.option("--references", metavar="FILE", type=_FILE, help="The detector's statistic of clean models, JSON or CSV.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: the GPU where there is one.")
@click.option("--force", is_flag=True, help="Replace what is already at --out.")
@click.option("--anyway", is_flag=True, help="Go on where the model is right no more often than chance.")
@click.option("--shrink", is_flag=True, help="Also write the network without its pruned filters: ONNX, safetensors.")
def defend(**given: Any) -> None:
    """Clean a model of yours: a checkpoint and clean images in; a repaired checkpoint, a page and a card out.

    The file's names may have prefixes (module.), its weights half precision; it is written back in the form it came in.
    The images, FOLDER/CLASS/*.png, are those of the model's own classes, in the order of the names (2 before 10), or of
    the lines of FOLDER/classes.txt. A model that is right on them no more often than chance is not repaired. Nothing is
    sent anywhere, and no code in the checkpoint is run.

    \b
    python -m nbtools defend --model net.pt --arch resnet18 --images clean --out repaired.pt
    """
    if (given["mean"] is None) != (given["std"] is None):
        raise click.UsageError("--mean and --std belong together; give both or neither")
    check_words(given["defence"], given["arch"])
    try:
        import torch

        from nbtools.defend.card import Request
        from nbtools.defend.command import defend as repair
        from nbtools.defend.command import prepare
        from nbtools.networks.training import DivergedError

        if given["device"] == "cuda" and not torch.cuda.is_available():
            raise click.UsageError("--device cuda: this machine has no GPU that PyTorch can use")
        try:
            job = prepare(Request(**given), click.echo)
        except (ValueError, OSError) as error:
            raise Refused(str(error)) from None
        except torch.OutOfMemoryError as error:
            raise click.ClickException(f"{error}. Nothing was written.") from None
        try:
            card = repair(job, click.echo)
        except (ValueError, OSError, DivergedError, torch.OutOfMemoryError) as error:
            raise click.ClickException(f"{error}. Nothing was written.") from None
    except KeyboardInterrupt:
        click.echo("Interrupted; nothing was written.")
        sys.exit(130)
    late = [f"Warning: {warning}" for warning in card["warnings"] if warning not in job.warnings]
    for line in [*card["verdict"], *late]:
        click.echo(line)
    for name, path in zip(("Page", "Card", "Model", "Small", "ONNX"), job.outputs, strict=False):
        click.echo(f"{name:<6} {path}")


@main.command()
@click.argument("grid", metavar="GRID.yaml", type=_FILE)
@click.option("--notebook", metavar="NAME", help="The points are runs of this notebook; the grid holds its parameters.")
@click.option("--profile", metavar="NAME", help="Of the points whose grid names none: quick, laptop or paper.")
@click.option("--out", metavar="DIR", type=_FILE, help="Folder for the rows. Default: runs/sweeps/<the grid's name>.")
@click.option("--workers", default=0, metavar="N", type=click.IntRange(min=0), help="Default: one a GPU, or a core.")
@click.option(
    "--threads", default=1, show_default=True, metavar="N", type=click.IntRange(min=1), help="Of torch, a point."
)
@click.option("--scheduler", default="", metavar="ADDRESS", help="Of a Dask cluster that is there: tcp://HOST:8786.")
@click.option("--retry", is_flag=True, help="Measure the points again whose row is an error.")
@click.option("--dry-run", is_flag=True, help="Check the grid, say how much it is, and stop.")
@_DATA
@_MODELS
def sweep(
    grid: Path,
    notebook: str | None,
    profile: str | None,
    out: Path | None,
    workers: int,
    threads: int,
    scheduler: str,
    retry: bool,
    dry_run: bool,
    data: Path | None,
    models: Path | None,
) -> None:
    """Measure a grid of experiments: one row a point, in one table, on all cores, GPUs or a Dask cluster.

    The grid is checked whole before anything runs. A sweep that was stopped goes on where it was: give the same command
    again. Models that points share are trained once; workers on other machines need a common NBTOOLS_CACHE for that.

    \b
    attack: [badnets, {blended: {alpha: [0.1, 0.2]}}]
    poison_rate: 0.1
    defence: [clp, {suspiciousness: {mu: [2, 2.5, 3]}}]
    samples_per_class: [1, 10]
    draw: 0..9
    """
    from nbtools.data import places
    from nbtools.lab import gridfile, parameters
    from nbtools.series import notebooks

    _settle_folders(data, models)
    try:
        parameters.check_ranges({"profile": profile or ""})  # all that can be refused before torch is imported
        gridfile.load(grid) if notebook else gridfile.check_file(grid)
        from nbtools.lab import grids
        from nbtools.lab.store import Store
        from nbtools.lab.sweep import Scale
        from nbtools.lab.sweep import sweep as work
        from nbtools.series import pages

        if notebook is None:
            asked = grids.read(grid, profile or "")
        else:
            asked = pages.read(grid, notebook, notebooks.source_folder(), profile or "")
        store = Store(out or notebooks.source_folder().parent.parent / "runs" / "sweeps" / grid.stem)
        scale = Scale(workers, threads, scheduler)
        left = [point for point in asked.points if store.lacks(point, retry)]
        needed = len({point.model for point in left} - {None})
        click.echo(f"{len(asked.points)} points in {grid}, {len(asked.points) - len(left)} with a row already")
        click.echo(f"{len(left)} to measure" + (f", on {needed} model{'s' * (needed > 1)}" if needed else ""))
        if not scheduler:  # another machine's data can't be seen from here
            places.require(sorted({point.dataset for point in left}), data)
        if dry_run:
            return
        outcome = work(asked, store, scale, str(data.absolute()) if data else "", retry, click.echo)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    state = "Interrupted: give the same command again to go on. " if outcome.interrupted else ""
    click.echo(f"{state}{outcome.found + outcome.done} of {len(asked.points)} rows, {outcome.failed} new ones failed")
    click.echo(f"Rows  {outcome.table}")
    if (tidy := outcome.table.with_name("table.csv")).is_file():
        click.echo(f"Table {tidy}")
    sys.exit(130 if outcome.interrupted else 1 if outcome.failed else 0)


@main.command()
def doctor() -> None:
    """Say what this machine has: Python, packages, device, data, cache, disk."""
    from nbtools.series.doctor import examine, table

    rows = examine()
    click.echo(table(rows))
    sys.exit(0 if all(row.fine for row in rows) else 1)


@main.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Timings per median.")
def bench(repeats: int) -> None:
    """Measure the package's fast paths against their plain forms, side by side."""
    from nbtools.lab.bench import main as measure

    measure(repeats)


main.add_command(address)

if __name__ == "__main__":
    main(prog_name="python -m nbtools")
