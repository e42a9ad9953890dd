from pathlib import Path

import numpy as np
import pytest

import analysis
from analysis.runs.data import load
from analysis.search.calibration import calibration_of, calibration_table, spread_of_replicates
from analysis.search.confirmation import confirmation_table
from analysis.search.explanation import explanation_table
from nas.runs.calibrations import read_calibration
from nas.runs.confirmations import conclusion, confirmed_by
from nas.runs.explanations import explanation_sentences, read_explanation
from nas.runs.layout import CONFIRMATION
from nas.runs.run import read_run
from nas.stats.reliability import advantage_p, reliability, seeds_needed
from nas.study.calibration import (
    OWN,
    REFERENCE,
    TrainingProtocol,
    calibration_architectures,
    calibration_study,
    parse_protocol,
    protocol_digest,
    reference_study,
    space_digest,
)
from nas.study.load import load_study
from space.costs.cost import cost
from space.errors import RunError
from tests.nas.scripted import searched

QUIET = TrainingProtocol("quiet", ("training.clip_norm=1",))
OWN_PROTOCOL = TrainingProtocol(OWN)


def merit(plan):
    """An architecture's own part of the loss, from -1 to 1, the same for all protocols."""
    return float(np.random.default_rng(int(plan.spec.digest, 16) % 2**32).uniform(-1, 1))


def scripted(noise, shared=0.5, until=0):
    """Losses with an architecture's part, from rung `until` on, a seed's own part, and luck."""

    def loss(plan, rung):
        level = shared * np.random.default_rng(plan.seed).normal()
        luck = noise * np.random.default_rng([plan.seed, rung, int(1e3 * noise), int(plan.spec.digest, 16) % 2**32]).normal()
        return float(10 + level + (merit(plan) if rung >= until else -merit(plan)) + luck)

    return loss


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    import yaml

    from tests.conftest import TINY

    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return load_study(path, ["finish=null"])


def run_of(study, protocol, folder, *, seeds=3, count=8, **how):
    made = calibration_study(study, protocol, calibration_architectures(study, count), seeds)
    return protocol, searched(made, folder / protocol.folder, **how).run


@pytest.fixture(scope="module")
def own(study, tmp_path_factory):
    """The study's own protocol, with much luck."""
    return run_of(study, OWN_PROTOCOL, tmp_path_factory.mktemp("own"), loss=scripted(0.5))


@pytest.fixture(scope="module")
def quiet(study, tmp_path_factory):
    """Another one, with little."""
    return run_of(study, QUIET, tmp_path_factory.mktemp("quiet"), loss=scripted(0.01))


def matrix(run, rung):
    """The scores by architecture and seed."""
    by = {(trial.digest, trial.seed): trial.reports[rung].val_loss for trial in run.trials.values()}
    digests = [row.spec.digest for row in run.study.rows]
    return np.array([[by[digest, seed] for seed in sorted({seed for _, seed in by})] for digest in digests])


def test_figures_are_those_of_the_scores(study, own, quiet):
    found = calibration_of(study, [own, quiet])
    assert [(row.protocol, row.rung, row.last) for row in found.rows[:4]] == [
        (OWN, 1, False),
        (OWN, 2, False),
        (OWN, 3, True),
        ("quiet", 1, False),
    ]
    row = found.rows[2]
    assert (row.planned, row.failed, row.macs) == (24, 0, study.budget.full)
    assert row.digest == protocol_digest(study)
    values = matrix(own[1], 2)
    expected = reliability(values)
    assert (row.figures.icc, row.figures.icc_low, row.figures.icc_high) == (expected.icc, expected.low, expected.high)
    assert (row.figures.between_sd, row.figures.within_sd) == (expected.between_sd, expected.within_sd)
    assert row.figures.seeds_needed == seeds_needed(expected.within_sd, expected.between_sd)
    assert row.figures.price == row.figures.seeds_needed * study.budget.full
    assert (found.space, found.metric, len(found.architectures)) == (space_digest(study), "val_loss", 8)


def test_a_protocol_with_less_luck_is_recommended(study, own, quiet):
    found = calibration_of(study, [own, quiet])
    assert (found.protocol, found.rung) == ("quiet", 3)
    assert found.verdict.startswith("'quiet' is recommended: telling two architectures apart by one SD between them takes 2 seeds")
    assert [row.better_p is not None for row in found.rows] == [False] * 5 + [True], "last rungs alone are compared"
    table = calibration_table(found)
    assert table[table[""] == "→"]["protocol"].tolist() == ["quiet"]
    assert "tau of reference" not in table
    assert "failed" not in table


def test_every_claim_is_corrected_for_the_others(study, own, quiet, tmp_path):
    other = run_of(study, TrainingProtocol("other", ("training.clip_norm=2",)), tmp_path, loss=scripted(0.3))
    rows = calibration_of(study, [own, quiet, other]).rows
    scores = [matrix(run, 2) for _, run in (own, quiet, other)]
    expected = [min(1.0, 2 * advantage_p(scores[0], one)) for one in scores[1:]]
    assert [row.better_p for row in rows if row.last and row.protocol != OWN] == expected
    assert expected[1] < 1


def test_the_own_protocol_is_kept_where_nothing_is_shown(study, tmp_path):
    own, quiet = (run_of(study, p, tmp_path, count=4, loss=scripted(n)) for p, n in ((OWN_PROTOCOL, 0.5), (QUIET, 0.35)))
    found = calibration_of(study, [own, quiet])
    assert found.rows[-1].figures.price < found.rows[2].figures.price, "it looks better"
    assert (found.protocol, found.rung) == (OWN, 3)
    assert "the study's own protocol is kept" in found.verdict
    assert "do not show that this is no luck" in found.verdict


def test_with_a_reference_a_rung_that_orders_otherwise_has_no_price(study, tmp_path):
    own = run_of(study, OWN_PROTOCOL, tmp_path, loss=scripted(0.01, until=1))
    made = reference_study(study, calibration_architectures(study, 8), 1, "1 GFLOPs")
    reference = searched(made, tmp_path / "reference", loss=scripted(0.01)).run
    found = calibration_of(study, [own], reference)
    first, second, last = found.rows
    assert first.figures.icc > 0.99, "it tells architectures apart very well"
    assert first.figures.reference_tau == pytest.approx(-1)
    assert (first.figures.seeds_needed, first.figures.price) == (None, None)
    assert (second.figures.reference_tau, last.figures.reference_tau) == pytest.approx((1, 1))
    assert found.reference == 10**9
    assert calibration_table(found)["seeds"].tolist()[0] == "∞"
    without = calibration_of(study, [own])
    assert without.rows[0].figures.price < without.rows[2].figures.price
    assert (without.protocol, without.rung) == (OWN, 3), "without a reference a cheap rung is not recommended"


def test_with_a_reference_a_cheaper_rung_is_recommended_where_that_is_shown(study, tmp_path):
    def loss(plan, rung):
        luck = [0.01, 0.01, 0.8][rung] * np.random.default_rng([plan.seed, int(plan.spec.digest, 16) % 2**32]).normal()
        return float(10 + merit(plan) + luck)

    own = run_of(study, OWN_PROTOCOL, tmp_path, loss=loss)
    made = reference_study(study, calibration_architectures(study, 8), 1, "1 GFLOPs")
    reference = searched(made, tmp_path / "reference", loss=lambda plan, rung: 10 + merit(plan)).run
    found = calibration_of(study, [own], reference)
    assert (found.protocol, found.rung) == (OWN, 1)
    assert "'as given' up to rung 1 is recommended" in found.verdict
    assert "that the reference shares" in found.verdict


def test_rungs_that_two_protocols_share_are_one_row(study, own, tmp_path):
    decay = TrainingProtocol("decay", ("budget.decay=0.4",))
    found = calibration_of(study, [own, run_of(study, decay, tmp_path, seeds=2, loss=scripted(0.1))])
    assert [(row.protocol, row.rung) for row in found.rows] == [(OWN, 1), (OWN, 2), (OWN, 3), ("decay", 3)]
    short = TrainingProtocol("short", ("budget.max=100 MFLOPs",))
    found = calibration_of(study, [own, run_of(study, short, tmp_path, seeds=2, loss=scripted(0.1))])
    assert [(row.protocol, row.rung) for row in found.rows[3:]] == [("short", 1), ("short", 3)], "a last rung is always there"
    assert found.rows[-1].better_p is None, "at half the compute it is not compared"


def test_failed_trainings_are_counted_and_their_protocol_is_not_recommended(study, own, tmp_path):
    # The first trials of a run are those of the first seed.
    quiet = run_of(study, QUIET, tmp_path, loss=scripted(0.01), failing=(1, 2))
    found = calibration_of(study, [own, quiet])
    row = found.rows[-1]
    assert (row.failed, row.figures.seeds, row.figures.architectures) == (2, 2, 8), "the seeds that all have"
    assert row.better_p is None
    assert (found.protocol, found.verdict) == (OWN, "the study's own protocol is kept: no other can be compared with it")
    assert calibration_table(found)["failed"].tolist()[-1] == "2 of 24"


def test_an_own_protocol_with_failures_is_compared_at_as_many_seeds(study, quiet, tmp_path):
    broken = run_of(study, OWN_PROTOCOL, tmp_path, loss=scripted(0.5), failing=(23,))
    found = calibration_of(study, [broken, quiet])
    by = {(trial.digest, trial.seed): trial.reports for trial in broken[1].trials.values()}
    own = [[by[row.spec.digest, seed][2].val_loss for seed in (0, 1)] for row in broken[1].study.rows]
    assert found.rows[-1].better_p == advantage_p(np.array(own), matrix(quiet[1], 2)[:, :2])
    assert found.rows[2].figures.seeds == 2


def test_an_own_protocol_that_mostly_fails_is_told(study, tmp_path):
    own = run_of(study, OWN_PROTOCOL, tmp_path, seeds=2, count=2, loss=scripted(0.5), failing=(1,))
    with pytest.raises(RunError, match="tiny: too many trainings of the study's own protocol failed"):
        calibration_of(study, [own])


def test_a_reference_without_an_architecture_is_refused(study, own, tmp_path):
    made = reference_study(study, calibration_architectures(study, 8), 1, "1 GFLOPs")
    reference = searched(made, tmp_path / REFERENCE.folder, failing=(2,)).run
    with pytest.raises(RunError, match="the reference has no val_loss of architecture"):
        calibration_of(study, [own], reference)


def test_equal_scores_have_no_figures(study, own, tmp_path):
    equal = run_of(study, QUIET, tmp_path, seeds=2, loss=lambda plan, rung: 1.0)
    found = calibration_of(study, [own, equal])
    assert found.rows[-1].figures is None
    assert calibration_table(found)["ICC"].tolist()[-1] == ""


def test_replicates_tell_how_much_of_the_spread_of_a_search_is_a_seeds(study, tmp_path):
    replicated = load_study(
        {**study.model_dump(mode="json"), "budget": {"max": "200 MFLOPs"}}, ["search.replicates=2", "search.trials=8"]
    )
    luck = searched(
        replicated, tmp_path / "luck", loss=lambda plan, rung: float(np.random.default_rng([plan.seed, plan.number]).normal())
    ).run
    told = spread_of_replicates(load(luck))
    assert told.startswith("at one seed, ")
    assert "4 complete architectures; " in told
    true = searched(replicated, tmp_path / "true", loss=scripted(0.001)).run
    assert "at one seed, 100% [" in spread_of_replicates(load(true))
    single = searched(load_study({**study.model_dump(mode="json"), "budget": {"max": "200 MFLOPs"}}), tmp_path / "single").run
    assert spread_of_replicates(load(single)) == ""


def test_replicates_that_the_rungs_let_through_are_called_that(study, tmp_path):
    pruning = load_study(study.model_dump(mode="json"), ["search.replicates=2", "search.trials=16", "budget.mode=promote"])
    assert "which the rungs chose" in spread_of_replicates(load(searched(pruning, tmp_path, loss=scripted(0.1)).run))


DATA = Path(analysis.__file__).parent / "notebooks" / "data"
RESULTS = (Path(analysis.__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_committed_calibration_says_what_docs_results_has():
    folder = DATA / "quickstart-search-calibration"
    recorded = read_calibration(folder)
    warm_up = parse_protocol("warm-up: training.warmup_steps=24")
    # The ledgers hold the study with its changes, and need no data here.
    runs = [(protocol, read_run(folder / protocol.folder)) for protocol in (OWN_PROTOCOL, warm_up)]
    longer = "budget={max: 160 GFLOPs, rungs: 3, reduction_factor: 2}"
    study = load_study(Path(analysis.__file__).parents[1] / "studies" / "quickstart_search.yaml", [longer])
    found = calibration_of(study, runs)
    assert (found.verdict, found.protocol, found.rung) == (recorded.verdict, recorded.protocol, recorded.rung)
    assert calibration_table(found).equals(calibration_table(recorded))
    for row in calibration_table(recorded).set_index(["protocol", "rung"]).itertuples():
        assert " ".join([*row.Index, *map(str, row[2:-1])]) in " ".join(RESULTS.split()), row
    # The quickstart's own budget is one of its rungs.
    own = load_study(Path(analysis.__file__).parents[1] / "studies" / "quickstart_search.yaml")
    assert protocol_digest(own) in {row.digest for row in recorded.rows}


def test_scores_of_a_wide_range_rank_sizes():
    trials = read_run(DATA / "wide-range-calibration" / "as-given").trials.values()
    by_size = sorted((cost(trial.spec).gflops, trial.val_loss) for trial in trials)
    assert np.corrcoef(np.transpose(by_size))[0, 1] > 0.9


def test_the_committed_confirmation_says_what_docs_results_and_the_readme_have():
    """What it claims follows from the ledgers of the search and of its fresh seeds, whatever was written down then."""
    run, fresh = read_run(DATA / "quickstart-confirmed"), read_run(DATA / "quickstart-confirmed" / CONFIRMATION)
    assert confirmed_by(run, fresh).result == run.confirmed.result
    readme = (Path(analysis.__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert conclusion(run) in RESULTS
    assert conclusion(run) in readme
    for row in confirmation_table(load(run)).itertuples(index=False):
        assert " ".join(" ".join(row[:-1]).split()) in " ".join(readme.split())


def test_the_committed_explanation_says_what_docs_results_has():
    found, simplified = read_explanation(DATA / "quickstart-confirmed")
    told = " ".join(RESULTS.split())
    for row in explanation_table(found).itertuples(index=False):
        cells = [row[0], *row[1:3], *(" ".join(pair).strip() for pair in (row[3:5], row[5:7]))]
        assert " | ".join(cells).replace("|  ", "| ").replace("  |", " |").replace("| |", "| |") in told, cells
    assert [effect.path for effect in found.effects if effect.carries] == ["attention.tokens"]
    for sentence in explanation_sentences(found, simplified)[-2:]:
        assert sentence in told
