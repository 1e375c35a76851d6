"""The command line: python -m nbtools run | doctor | bench."""

import os
import sys
from pathlib import Path

import click


class Refused(click.ClickException):
    """Bad input: one message, exit code 2, before any work."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Notebooks on backdoored neural networks: run them, check this machine, measure the package."""


@main.command()
@click.argument("names", metavar="[NOTEBOOK]...", nargs=-1)
@click.option("--profile", metavar="NAME", help="Scale: quick, laptop or paper. Default: quick, or paper on a GPU.")
@click.option("-p", "given", metavar="NAME VALUE", nargs=2, multiple=True, help="Set a parameter of the notebooks.")
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.")
@click.option("--write", is_flag=True, help="Also write the executed notebooks that are committed, with a stamp.")
@click.option("--keep-going", is_flag=True, help="Run the remaining notebooks after one has failed.")
@click.option(
    "--data",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that holds the data sets.",
)
@click.option("--notebooks", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path), hidden=True)
def run(
    names: tuple[str, ...],
    profile: str | None,
    given: tuple[tuple[str, str], ...],
    out: Path | None,
    write: bool,
    keep_going: bool,
    data: Path | None,
    folder: Path | None,
) -> None:
    """Run notebooks in order, all of them when none is named.

    A notebook is named by its stem (02_spectral_norm), its number (02) or its file. Results go to --out, by default
    runs/<profile>/<time>: the executed notebooks, their HTML, and the rows that they save.

    \b
    python -m nbtools run                                  the whole series
    python -m nbtools run 06 --profile laptop -p mu 2.5    one notebook, one parameter changed
    """
    from nbtools import notebooks
    from nbtools.run import new_folder, run_series
    from nbtools.run import plan as make_plan

    if data is not None:
        os.environ["NBTOOLS_DATA"] = str(data)
    for name in ("NBTOOLS_DATA", "NBTOOLS_CACHE"):
        if value := os.environ.get(name):  # kernels work in another folder, where a relative path is another place
            os.environ[name] = str(Path(value).expanduser().absolute())
    try:
        folder = (folder or notebooks.source_folder()).resolve()
        plan = make_plan(names, profile, given, folder)
        if out is None:
            out = new_folder(plan.profile, folder.parent.parent)
        out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None
    except KeyboardInterrupt:
        click.echo("Interrupted before the first notebook.")
        sys.exit(130)
    for note in plan.notes:
        click.echo(note)
    outcome = run_series(plan, out.resolve(), write=write, keep_going=keep_going, say=click.echo)
    _report(out, plan.sources, outcome.done, outcome.interrupted, write)
    sys.exit(130 if outcome.interrupted else 1 if outcome.failed else 0)


def _report(out: Path, sources: list[Path], done: list[str], interrupted: bool, write: bool) -> None:
    """Say what is finished, and where executed notebooks, HTML and rows lie."""
    if interrupted or len(done) < len(sources):
        how = "Interrupted. " if interrupted else ""
        click.echo(f"{how}Finished: {', '.join(done) or 'none'} ({len(done)} of {len(sources)}).")
    shown = Path(os.path.relpath(out)) if out.resolve().is_relative_to(Path.cwd()) else out
    if done:
        click.echo(f"Executed notebooks  {shown / '*.ipynb'}" + (", also in notebooks" if write else ""))
        click.echo(f"HTML                {shown / '*.html'}")
    click.echo(f"Rows                {shown / '*.csv' if any(out.glob('*.csv')) else 'none were saved'}")
    for path in sorted([*out.glob("*.failed.ipynb"), *out.glob("*.partial.ipynb")]):
        click.echo(f"To look at          {shown / path.name}")


@main.command()
def doctor() -> None:
    """Say what this machine has: Python, packages, device, data, cache, disk."""
    from nbtools.doctor import examine, table

    rows = examine()
    click.echo(table(rows))
    sys.exit(0 if all(row.fine for row in rows) else 1)


@main.command()
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1), help="Timings per median.")
def bench(repeats: int) -> None:
    """Measure the package's fast paths against their plain forms, side by side."""
    from nbtools.bench import main as measure

    measure(repeats)


if __name__ == "__main__":
    main(prog_name="python -m nbtools")
