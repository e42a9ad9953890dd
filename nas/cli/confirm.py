"""The command `nas confirm`: the best of a search that has ended, trained anew with fresh seeds and compared with a baseline."""

from __future__ import annotations

import click

from nas.cli.command import Command, run_argument, run_folder
from space.errors import RunError


@click.command("confirm", cls=Command)
@run_argument
@click.option("--best", type=click.IntRange(1), help="How many of the best to confirm; 3 by default, or as the study says.")
@click.option("--seeds", metavar="N", help="Fresh seeds of each and of the baseline; 6 by default. More can be added later.")
@click.option("--against", metavar="PRESET", help="The baseline, a preset; by default the study's model.")
@click.option("--budget", help="The training of each, such as '4 TFLOPs'; by default the search's.")
@click.option("--address", envvar="RAY_ADDRESS", help="A running Ray cluster; one is started on this machine by default.")
@click.option("--in-process", is_flag=True, help="Train one trial after the other in this process, without Ray.")
@click.option("--walltime", metavar="DURATION", help="End in time, at rungs, before this time such as 3h50m is over.")
def confirm_command(
    run: str,
    best: int | None,
    seeds: str | None,
    against: str | None,
    budget: str | None,
    address: str | None,
    in_process: bool,
    walltime: str | None,
) -> None:
    """Train the best of a search anew, with seeds that it never used.

    They are compared with the baseline as the rows of an ablation are. A search that has not ended is finished first; the same
    command goes on after an interruption.
    """
    from nas.cli.bill import check_study
    from nas.cli.run import run_and_tell, with_section
    from nas.execution.ending import Ending, seconds_of
    from nas.runs.confirmations import check_confirmable
    from nas.runs.records import State
    from nas.runs.run import read_run

    ending = Ending(seconds_of(walltime) if walltime else None)
    recorded = read_run(run_folder(run))
    old = recorded.study
    if old.search is None:
        raise RunError(f"{run} is an ablation, whose rows have paired seeds already; nas confirm is for searches")
    baseline = None if against is None else f"{{preset: {against}}}"
    study = with_section(old, "confirm", {"best": best, "seeds": seeds, "against": baseline, "budget": budget})
    if not recorded.in_state(State.RUNNING) and (recorded.spent or len(recorded.trials) >= study.most_trials):
        check_confirmable(recorded, study)
    check_study(study)
    run_and_tell(study, run, in_process=in_process, address=address, ending=ending)
