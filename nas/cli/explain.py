"""The command `nas explain`: which of the differences between the winner of a search and the baseline carry its gain."""

from __future__ import annotations

import click

from nas.cli.command import Command, run_argument, run_folder
from space.errors import RunError


@click.command("explain", cls=Command)
@run_argument
@click.option("--seeds", metavar="N", help="Paired seeds of every row, or {min: 3, max: 6}, the default.")
@click.option("--most", type=click.IntRange(1), help="The most differences to take back one at a time; 8 by default.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
@click.option("--walltime", metavar="DURATION", help="End in time, at rungs, before this time such as 3h50m is over.")
def explain_command(
    run: str, seeds: str | None, most: int | None, address: str | None, in_process: bool, walltime: str | None
) -> None:
    """Take back the differences between a confirmed winner and the baseline, one at a time.

    All rows have the winner's GFLOPs and paired seeds that nothing else used. The winner without the differences that carry nothing
    is then compared with it, and with the baseline.
    """
    from nas.cli.bill import check_study
    from nas.cli.run import run_and_tell, with_section
    from nas.execution.ending import Ending, seconds_of
    from nas.runs.explanations import explained_by
    from nas.runs.run import read_run

    ending = Ending(seconds_of(walltime) if walltime else None)
    recorded = read_run(run_folder(run))
    old = recorded.study
    if old.search is None:
        raise RunError(f"{run} is an ablation, whose rows say already what each variant does; nas explain is for searches")
    if recorded.confirmed is None:
        raise RunError(f"the winner of {run} is not confirmed, so there is nothing to explain yet; nas confirm {run} comes first")
    explained_by(recorded)
    study = with_section(old, "explain", {"seeds": seeds, "most": most})
    check_study(study)
    run_and_tell(study, run, in_process=in_process, address=address, ending=ending)
