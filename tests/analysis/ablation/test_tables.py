"""An ablation's frames and tables: what stands in them, and in which words."""

import io
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from analysis.ablation.comparison import compare
from analysis.ablation.tables import ablation_tables
from analysis.ablation.text import display, parts, render_tables
from analysis.runs.data import load
from nas.cli.app import main
from nas.runs.winners import winners
from space.errors import ToolkitError
from tests.nas.ablations import VARIANTS, ablation, effects
from tests.nas.scripted import searched

BESIDE = [
    {**VARIANTS[0], "row": "U-DiT-T (+Cos.Sim.)"},
    {**VARIANTS[1], "row": "U-DiT-T (+RoPE2D)"},
    VARIANTS[2],
]


def run_of(tmp_path, *changes, loss=None, **block):
    study = ablation(tmp_path, *changes, **block)
    return searched(study, tmp_path / "run", loss=loss or effects(study, noise=0.002, cosine=-0.1)).run


@pytest.fixture
def ladder(tmp_path):
    return load(
        run_of(tmp_path, design="ladder", seeds=6, controls=["raw", "flop-matched"], published="udit_table9", variants=BESIDE)
    )


def test_the_frame_has_a_row_a_variant_control_and_seed(ladder):
    assert len(ladder.ablation.seeds) == 7 * 6
    assert not ladder.ablation.seeds.duplicated(["variant", "control", "seed"]).any()
    assert set(ladder.ablation.seeds["state"]) == {"COMPLETE"}
    raw = ladder.ablation.rows("", "raw")
    assert set(raw["variant"]) == {"plain", "+ cosine", "+ RoPE", "+ conv"}
    matched = ladder.ablation.rows("", "flop-matched")
    assert set(matched["variant"]) == set(raw["variant"]), "the baseline stands under every control"
    assert matched.groupby("variant")["gflops"].first().pipe(lambda cost: cost / cost["plain"] - 1).abs().max() < 0.02
    assert raw.loc[raw["variant"] == "+ RoPE", ["has.+ cosine", "has.+ RoPE", "has.+ conv"]].iloc[0].tolist() == [True, True, False]
    assert ladder.ablation.blocks[0].chain == ("plain", "+ cosine", "+ RoPE", "+ conv")


def test_a_pruned_or_failed_trial_has_no_score(tmp_path):
    study = ablation(tmp_path)
    run = searched(study, tmp_path / "run", failing={1}).run
    data = load(run)
    missing = data.ablation.seeds[data.ablation.seeds["val_loss"].isna()]
    assert missing[["variant", "seed", "state"]].values.tolist() == [["+ cosine", 0, "FAILED"]]
    table = ablation_tables(data)[0].frame.set_index("variant")
    assert table.loc["+ cosine", ["n", "planned", "pairs"]].tolist() == [2, 3, 2]
    assert table.loc["+ RoPE", ["n", "planned", "pairs"]].tolist() == [3, 3, 3]


def test_failed_trials_are_told_and_undo_a_verdict(tmp_path):
    study = ablation(tmp_path, seeds=6)
    loss = effects(study, noise=0.001, cosine=-0.1)
    assert ablation_tables(load(searched(study, tmp_path / "whole", loss=loss).run))[0].frame["verdict"][1] == "better"
    run = searched(study, tmp_path / "run", loss=loss, failing={1}).run
    (table,) = ablation_tables(load(run))
    assert table.frame["verdict"][1] == "no evidence"
    assert not winners(run)
    told = "+ cosine: 1 of 6 pairs failed; the others alone would say 'better', but with the failures counted against it"
    assert any(note.startswith(told) for note in table.notes)
    assert parts(table.frame)[0].set_index("variant")["pairs"].tolist()[1:] == ["5 of 6", "6", "6"]


def test_trials_that_have_not_ended_are_no_failures(tmp_path):
    study = ablation(tmp_path, seeds=4)
    data = load(searched(study, tmp_path / "run", stop_after=13, workers=2).run)
    assert "RUNNING" in set(data.ablation.seeds["state"])
    (table,) = ablation_tables(data)
    assert (table.frame["planned"] == table.frame["pairs"]).all()
    compared = compare(data.ablation.rows("", "raw"), "plain")
    assert (compared["planned"] == compared["pairs"]).all()
    assert "failed" not in " ".join(table.notes)
    sequential = ablation(tmp_path, seeds={"min": 4, "max": 6, "margin": 1e-6})
    loss = effects(sequential, noise=0.001, cosine=-0.2)
    frame = ablation_tables(load(searched(sequential, tmp_path / "looked", loss=loss).run))[0].frame
    assert frame["n"].nunique() > 1
    assert (frame["planned"] == frame["pairs"]).all()


def test_a_ladder_is_compared_with_baseline_and_row_before(ladder):
    tables = ablation_tables(ladder)
    assert [table.title for table in tables] == [
        "tiny: val_loss (ladder, as given)",
        "tiny: val_loss (ladder, at the baseline's GFLOPs)",
        "tiny: what is left of the gain in val_loss at the baseline's GFLOPs",
        "tiny: what each component adds to val_loss, in the ladder's order",
    ]
    shares = tables[3].frame.set_index("variant")
    steps = tables[0].frame.set_index("variant")["step"].drop("plain")
    assert shares["value"].tolist() == pytest.approx(steps.tolist())
    assert shares["share"].sum() == pytest.approx(1)
    frame = tables[0].frame.set_index("variant")
    assert frame.loc["+ cosine", "verdict"] == frame.loc["+ cosine", "step verdict"] == "better"
    assert frame.loc["+ RoPE", "step verdict"] == "worse", (
        "what cosine had gained is lost again, as the scripted effects add nothing up"
    )
    assert frame.loc["+ conv", "verdict"] == "no evidence"
    order = ["plain", "+ cosine", "+ RoPE", "+ conv"]
    direct = compare(ladder.ablation.rows("", "raw"), "plain", order=order).set_index("variant")
    for ours, theirs in (("difference", "difference"), ("low", "ci_low"), ("p rule Holm", "p_rule_holm")):
        assert frame[ours].tolist() == pytest.approx(direct[theirs].tolist(), nan_ok=True)
    cost = ladder.ablation.rows("", "raw").groupby("variant")[["gflops", "params_m", "train_gflops"]].first()
    assert (
        frame.loc["+ conv", ["GFLOPs", "params (M)", "train GFLOPs"]].tolist()
        == cost.loc["+ conv", ["gflops", "params_m", "train_gflops"]].tolist()
    )


def test_a_table_names_its_rule_and_its_family(ladder):
    raw, _, left, _ = ablation_tables(ladder)
    by = "Verdicts are by hierarchical variances, with Holm's correction over all"
    assert any(note.startswith(f"{by} 5 comparisons of this table (differences and steps)") for note in raw.notes)
    assert any(note.startswith(f"{by} 6 comparisons of this table (raw and matched differences)") for note in left.notes)
    assert set(raw.frame["rule"]) == {"", "hierarchical variances"}
    by_t = ablation_tables(ladder, rule="t")
    assert any("Verdicts are by paired t, which assumes normal differences, with Holm's" in note for note in by_t[0].notes)
    assert "hierarchical" not in render_tables(by_t, "md") + render_tables(by_t, "csv")
    claimed = raw.frame[raw.frame["verdict"].isin(["better", "worse"])]
    assert claimed["exaggeration"].between(1, 2).all()
    assert "so claimed ones are too large on average: by" in render_tables([raw], "md")
    assert "Seeds: ICC " in render_tables([raw], "md")


def test_a_table_of_the_run_exports_the_row_that_it_claims(ladder, tmp_path):
    """One family for the table and for the winner: an effect that three differences alone would claim, not five comparisons."""
    study = ablation(tmp_path, design="ladder", seeds=6)
    for shift in (-0.025, -0.022):
        folder = tmp_path / f"{shift:.4f}"
        run = searched(study, folder, loss=effects(study, noise=0.01, cosine=shift, RoPE=shift / 2)).run
        verdicts = ablation_tables(load(run))[0].frame.set_index("variant")["verdict"]
        better = {row.spec.digest for row in study.rows if verdicts[row.variant] == "better"}
        assert bool(better) == (shift == -0.025)
        assert [trial.digest in better for trial in winners(run)] == [True] * bool(better)


def test_the_published_numbers_stand_beside_flagged(ladder):
    table = ablation_tables(ladder)[0]
    frame = table.frame.set_index("variant")
    assert frame.loc["+ cosine", "FID printed†"] == "86.96"
    assert frame.loc["+ RoPE", ["GFLOPs printed", "IS printed†"]].tolist() == ["0.91", "16.19"]
    assert frame.loc["+ conv", "FID printed†"] != frame.loc["+ conv", "FID printed†"], "no row of that name is printed"
    notes = " ".join(table.notes)
    assert "Printed: U-DiT Table 9, one training run per row, without error bars." in notes
    assert "† The printed scores are not val_loss" in notes
    assert "batch size 256, here 4; data ImageNet 256×256, here fashion-mnist-10k; train steps 400000, here 2." in notes


def test_six_pairs_say_what_the_exact_test_can_reach(tmp_path):
    data = load(run_of(tmp_path, seeds=6))
    notes = " ".join(ablation_tables(data)[0].notes)
    assert "(6 pairs)" in notes
    assert "with Holm's correction over 3 comparisons it reaches 0.094 at best (7 pairs would get below 0.05)" in notes


def test_one_seed_gets_neither_stars_nor_intervals_and_says_why(tmp_path):
    table = ablation_tables(load(run_of(tmp_path, seeds=1)))[0]
    text = render_tables([table], "md")
    assert "One seed per row: no intervals, no tests and no marks" in text
    assert "*" not in text.replace("**", "")
    assert "[+" not in text
    assert "one seed: no test" in text


def test_sequential_seeds_and_changed_ones_are_told(tmp_path):
    data = load(run_of(tmp_path, seeds={"min": 4, "max": 8}))
    assert data.ablation.looks == (4, 5, 6, 7, 8)
    notes = " ".join(ablation_tables(data)[0].notes)
    assert "group-sequential design with looks from 4 to 8 pairs, valid under peeking" in notes
    fixed = ablation(tmp_path, seeds=9)
    later = load(searched(fixed, tmp_path / "run", loss=effects(fixed)).run)
    assert later.ablation.replanned
    notes = " ".join(ablation_tables(later)[0].notes)
    assert "The ablation was changed after the first results" in notes
    assert "Interim" not in notes


def test_fewer_seeds_than_were_trained_still_have_a_table(tmp_path):
    run_of(tmp_path, seeds={"min": 3, "max": 6, "margin": 1e-6})
    less = ablation(tmp_path, seeds={"min": 3, "max": 4, "margin": 1e-6})
    data = load(searched(less, tmp_path / "run").run)
    assert data.ablation.looks[-1] == 6
    assert ablation_tables(data)


def test_an_unfinished_or_failed_run_says_so(tmp_path):
    study = ablation(tmp_path, seeds=4)
    data = load(searched(study, tmp_path / "run", stop_after=8, failing={2}).run)
    notes = " ".join(ablation_tables(data)[0].notes)
    assert "Interim: 9 of 16 planned trials have ended, and p-values hold for the planned number only." in notes
    assert "1 trial FAILED; their seeds are left out" in notes
    whole = load(run_of(tmp_path / "whole", seeds=2) if (tmp_path / "whole").mkdir() is None else None)
    assert "Interim" not in " ".join(ablation_tables(whole)[0].notes)


def test_seeds_added_while_looking_are_left_out_where_intervals_are_plain(tmp_path):
    study = ablation(tmp_path, design="ladder", seeds={"min": 4, "max": 6, "margin": 1e-6}, controls=["raw", "flop-matched"])
    data = load(searched(study, tmp_path / "run", loss=effects(study)).run)
    assert set(data.ablation.seeds.groupby("variant")["seed"].nunique()) == {6}, "nothing differs, so all is open to the end"
    left, shares = ablation_tables(data)[-2:]
    assert set(left.frame["pairs"]) == {4}
    assert set(shares.frame["seeds"]) == {4}
    assert "those added while looking are left out" in left.notes[-1]


def test_components_may_be_called_like_columns(tmp_path):
    variants = [{**VARIANTS[0], "name": "channels"}, {**VARIANTS[1], "name": "ratio"}, {**VARIANTS[2], "name": "seed"}]
    shares, effects = ablation_tables(load(run_of(tmp_path, design="factorial", variants=variants)))[-2:]
    assert shares.frame["variant"].tolist() == ["channels", "ratio", "seed"]
    assert effects.frame["variant"].tolist()[3:] == ["channels × ratio", "channels × seed", "ratio × seed"]


def test_rungs_have_a_table_of_their_own(tmp_path):
    variants = [{"name": "+ cosine", "set": {"attention.similarity": "cosine"}, "row": "U-DiT-L"}]
    budget = "budget={steps: 10, rungs: 5, even: true}"
    data = load(run_of(tmp_path, budget, variants=variants, published="udit_table5"))
    table = ablation_tables(data)[-1]
    assert table.title == "tiny: val_loss at every rung"
    rows = table.frame[table.frame["variant"].str.startswith("+ cosine")]
    assert rows["steps"].tolist() == [1, 2, 3, 4, 5], "as the scripted reports count them"
    assert rows["steps printed"].tolist() == ["200K", "400K", "600K", "800K", "1000K"]
    assert rows["FID printed†"].iloc[[0, -1]].tolist() == ["15.26", "7.54"]


@pytest.mark.parametrize("form", ["md", "latex", "csv"])
def test_every_form_holds_every_row(ladder, form):
    text = render_tables(ablation_tables(ladder), form)
    for name in ("plain", "+ cosine", "+ RoPE", "+ conv"):
        assert name in text
    if form == "csv":
        frame = pd.read_csv(io.StringIO(text))
        wanted = ablation_tables(ladder)[0].frame
        np.testing.assert_array_equal(frame["difference"][:4], wanted["difference"])
    if form == "latex":
        assert text.count(r"\toprule") == text.count(r"\bottomrule") == 3 + 3 + 1 + 1
        assert text.count("{") == text.count("}")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(ladder, tmp_path):
    odd = run_of(tmp_path, baseline=r"a^1 \{b}~ 50%_$#&", seeds=3)
    body = render_tables([*ablation_tables(ladder), *ablation_tables(load(odd))], "latex")
    (tmp_path / "table.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{body}\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "table.pdf").stat().st_size > 10_000


def test_names_of_any_text_tear_no_table(tmp_path):
    variants = [
        {"name": "[2mm] first", "set": {"attention.similarity": "cosine"}},
        {"name": "* second", "set": {"attention.position": "rope2d"}},
        {"name": "third\n| of\r\nlines", "set": {"feed_forward.kind": "conv", "feed_forward.reparam": False}},
    ]
    tables = ablation_tables(load(run_of(tmp_path, variants=variants, name="block\nof lines")))
    latex, markdown, csv = (render_tables(tables, form) for form in ("latex", "md", "csv"))
    assert "{}[2mm] first &" in latex
    assert "{}* second &" in latex
    assert not [line for line in latex.splitlines() if line.startswith(("[", "*"))]
    assert "third | of lines &" in latex
    assert "| third \\| of lines |" in markdown
    assert len(csv.splitlines()) == 1 + sum(len(table.frame) for table in tables)


def test_a_factorial_has_shapley_values_and_effects(tmp_path):
    data = load(run_of(tmp_path, design="factorial", seeds=4))
    shares, effects = ablation_tables(data)[-2:]
    assert shares.title == "tiny: what each component adds to val_loss, averaged over every order (Shapley)"
    assert shares.frame["variant"].tolist() == ["+ cosine", "+ RoPE", "+ conv"]
    assert effects.frame["variant"].tolist()[3:] == ["+ cosine × + RoPE", "+ cosine × + conv", "+ RoPE × + conv"]
    rows = data.ablation.rows("").groupby("variant")["val_loss"].mean()
    assert shares.frame["value"].sum() == pytest.approx(rows["+ cosine + + RoPE + + conv"] - rows["plain"])
    assert "×" in render_tables([effects], "md")


def test_digits_follow_the_spread(ladder):
    text = display(ablation_tables(ladder)[0].frame).set_index("variant")
    assert text.loc["+ cosine", "difference [95 %]"].endswith("] *")
    assert not text.loc["+ conv", "difference [95 %]"].endswith("*")
    mean, _, sd = text.loc["plain", "val_loss"].partition(" ± ")
    assert len(mean.partition(".")[2]) == len(sd.partition(".")[2])
    first, second = parts(ablation_tables(ladder)[0].frame)
    assert list(first.columns)[:3] == ["variant", "GFLOPs", "val_loss"]
    assert {"train GFLOPs", "params (M)", "steps/s"} <= set(second.columns)


def test_what_cannot_be_tabled_is_refused(ladder, tmp_path):
    with pytest.raises(ToolkitError, match="'val_los' is not measured of a trial; did you mean 'val_loss'"):
        ablation_tables(ladder, "val_los")
    with pytest.raises(ToolkitError, match="no trial of tiny has a fid yet"):
        ablation_tables(ladder, "fid")
    with pytest.raises(ToolkitError, match="no table format 'html'"):
        render_tables(ablation_tables(ladder), "html")


def test_the_command_prints_the_tables(tmp_path, capsys):
    run_of(tmp_path, seeds=2)
    with pytest.raises(SystemExit) as ended:
        main(["table", str(tmp_path / "run")])
    assert ended.value.code == 0
    assert "| + cosine |" in (printed := capsys.readouterr().out)
    assert "Verdicts are by hierarchical variances" in printed
    assert load(tmp_path / "run").name == "tiny"
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path / "run"), "--rule", "t"])
    assert "Verdicts are by paired t" in capsys.readouterr().out
    with pytest.raises(SystemExit) as refused:
        main(["table", str(tmp_path / "run"), "--rule", "tt"])
    assert refused.value.code == 2
    assert "no rule 'tt'; did you mean 't'?" in capsys.readouterr().err
