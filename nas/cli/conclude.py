"""The tables and figures that `nas run` prints and draws at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nas.runs.layout import EVALUATION, SAMPLES
from nas.runs.remote import RunLocation
from nas.runs.run import Run
from nas.runs.winners import winners
from space.files import first_line


@contextmanager
def beside(console: Any, what: str) -> Iterator[None]:
    """A context whose failure is told beside the other results: the run is done, and `what` can be had later."""
    try:
        yield
    except Exception as error:
        # Anything that a figure, a table or the disk may raise.
        why = f"{type(error).__name__}: {first_line(error)}"
        console.print(f"{what:16s} not made: {why}", markup=False, highlight=False, soft_wrap=True)


def conclude_search(console: Any, data: Any, where: RunLocation) -> list[Path]:
    """Print the ranking, the front and the written files; draw the figures and return their files.

    What fails is told, and the rest is done.
    """
    folder = where.folder
    with beside(console, "ranking"):
        from analysis.runs.tables import ranking_table
        from nas.study.budget import EQUAL

        _print_frame(
            console,
            ranking_table(data).drop(columns=["train GFLOPs", "images/s", "memory (MiB)"]),
            f"Ranking ({data.run.metric} at {EQUAL[data.study.budget.unit]}; `last` at the last rung reached)",
        )
    with beside(console, "front"):
        from analysis.runs.plots import front_info
        from analysis.runs.tables import architecture_texts

        info, architectures = front_info(data), architecture_texts(data)
        score, *others = info.axes
        named = " and ".join({"gflops": "GFLOPs"}.get(name, name) for name in others)
        front = info.points[info.points["on_front"]][["trial", *others, score]]
        front[str(architectures.name)] = front["trial"].map(architectures)
        _print_frame(console, front, f"Front of {score} against {named}")
    with beside(console, "spread"):
        from analysis.search.calibration import spread_of_replicates
        from nas.runs.calibrations import known_spread

        if spread := spread_of_replicates(data) or known_spread(data.study, folder.parent):
            console.print(f"spread           {spread}", markup=False, highlight=False, soft_wrap=True)
    if data.run.confirmed is not None:
        with beside(console, "confirmation"):
            from analysis.search.confirmation import confirmation_table

            print_text(console, confirmation_table(data), "Confirmation (fresh paired seeds; `searched` chose, and is too good)")
    written: list[Path] = []
    if data.run.confirmed is not None:
        with beside(console, "confirmation.png"):
            from analysis.search.confirmation import plot_confirmation

            _save(plot_confirmation(data)[0], folder / "confirmation.png")
            written.append(folder / "confirmation.png")
    with beside(console, "explanation"):
        _print_explanation(console, where, written)
    for name in ("front", "curves"):
        path = folder / f"{name}.png"
        with beside(console, path.name):
            from analysis.runs.plots import plot_curves, plot_front

            _save({"front": plot_front, "curves": plot_curves}[name](data), path)
            written.append(path)
    console.print(f"\nrun directory    {folder}", highlight=False, soft_wrap=True)
    for path in written:
        console.print(f"{path.stem:16s} {path}", highlight=False, soft_wrap=True)
    return written


def _print_explanation(console: Any, where: RunLocation, written: list[Path]) -> None:
    """Print what a winner was explained by, where it was, and draw it."""
    from analysis.search.explanation import explanation_table, plot_explanation
    from nas.runs.explanations import explanation_sentences, read_explanation

    if (explained := read_explanation(where)) is None:
        return
    found, simplified = explained
    print_text(console, explanation_table(found), f"Explanation of {found.explained.name} (at its GFLOPs; fresh paired seeds)")
    console.print()
    for sentence in explanation_sentences(found, simplified):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    console.print()
    path = where.folder / "explanation.png"
    with beside(console, path.name):
        _save(
            plot_explanation(found),
            path,
            f"{found.explained.name} with one difference from {found.explained.baseline_name} taken back",
        )
        written.append(path)


def _save(axes: Any, path: Path, title: str = "") -> None:
    """Write the figure of some axes."""
    from matplotlib import pyplot as plt

    figure = axes.get_figure(root=True)
    assert figure is not None
    try:
        if title:
            figure.suptitle(title, fontsize=10)
        figure.savefig(path, dpi=150)
    finally:
        plt.close(figure)


def conclude_ablation(console: Any, data: Any, where: RunLocation) -> list[Path]:
    """Print an ablation's comparisons and the written files; draw a forest plot per comparison and return their files.

    What fails is told, and the rest is done.
    """
    folder, written = where.folder, list[Path]()
    with beside(console, "comparisons"):
        _print_comparisons(console, data, folder, written)
    console.print(f"\nrun directory    {folder}", highlight=False, soft_wrap=True)
    for path in written:
        console.print(f"{path.stem:16s} {path}", highlight=False, soft_wrap=True)
    console.print(f"whole tables     nas table {folder} --format md|latex|csv", highlight=False, soft_wrap=True)
    return written


def _print_comparisons(console: Any, data: Any, folder: Path, written: list[Path]) -> None:
    from analysis.ablation.tables import ablation_tables
    from analysis.ablation.text import narrow, parts

    notes: dict[str, None] = {}
    for number, table in enumerate(ablation_tables(data) if data.ablation.has_results else [], start=1):
        for part, text in enumerate(narrow(parts(table.frame)[:1])):
            columns = [
                name for name in text if name not in ("GFLOPs", "n", "pairs") and not str(name).startswith(("p ", "step p "))
            ]
            print_text(console, text[columns], "" if part else table.title)
        notes |= dict.fromkeys(table.notes)
        if table.compared is not None and table.compared["difference"].notna().any():
            path = folder / f"comparison-{number}.png"
            with beside(console, path.name):
                from analysis.ablation.plots import plot_compare

                _save(plot_compare(table.compared, metric=data.ablation.metric), path, table.title)
                written.append(path)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def tell_winners(console: Any, run: Run, where: str | Path, folder: Path) -> None:
    """Print what a finished run has exported, with its samples and its evaluation, or why it exported nothing.

    Args:
        console: The console.
        run: The run at its end.
        where: The run's address, for the command that exports more.
        folder: The run directory on this machine.
    """

    def say(label: str, what: object) -> None:
        console.print(f"{label:16s} {what}", markup=False, highlight=False, soft_wrap=True)

    evaluation, chosen = run.study.evaluation, winners(run)
    if not chosen:
        of_ablation = "no row is better than its baseline by the rule of the tables"
        why = of_ablation if run.study.ablation else "no trial is complete"
        asked = f"; for the best mean, `nas export {where} --select best`" if run.best() else ""
        say("exported winner", f"none: {why}{asked}")
    for trial in chosen:
        if trial.export is None:
            continue  # Why was said as it failed.
        model, reason = folder / trial.export.folder, trial.export.without_samples
        say("exported winner", model)
        none = "evaluation.samples is null" if evaluation.samples is None else reason
        say("samples", f"none: {none}" if none else model / SAMPLES)
        if evaluation.fid is not None and not reason:
            say("evaluation", model / EVALUATION)


def _print_frame(console: Any, frame: Any, title: str) -> None:
    from analysis.runs.tables import cells

    print_text(console, cells(frame), title)


def print_text(console: Any, text: Any, title: str) -> None:
    """Print a frame of text as a table, on the console's width; where it does not fit, columns of sentences take several lines."""
    from rich.markup import escape
    from rich.table import Table

    from analysis.runs.tables import DIFFERS_FROM

    console.print(f"\n{title}" if title else "", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None)
    widths = {name: max([len(str(name)), *(len(cell) for cell in text[name])]) for name in text.columns}
    fits = sum(widths.values()) + 2 * len(widths) <= console.width
    sentences = [name for name in text.columns if name == "reason" or str(name).startswith(DIFFERS_FROM)]
    for column in text.columns:
        table.add_column(column, overflow="fold", no_wrap=(fits or bool(sentences)) and column not in sentences)
    for row in text.itertuples(index=False):
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
