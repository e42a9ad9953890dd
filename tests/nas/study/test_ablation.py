"""Designs, controls and settings of an ablation: which rows there are, and what is refused."""

import pytest
import yaml

from nas.study.load import load_study
from nas.study.rows import comparisons
from space.costs.cost import cost
from space.errors import Mistakes, ToolkitError
from tests.nas.ablations import PLAIN, VARIANTS, ablation


def changed_paths(study, row):
    """The toggles of a row that differ from the plain model."""
    return {path for path, plain in PLAIN.items() if row.spec.value_at(path) != plain}


COSINE, ROPE, CONV = "attention.similarity", "attention.position", "feed_forward.kind"


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        ("add-one-in", {"plain": set(), "+ cosine": {COSINE}, "+ RoPE": {ROPE}, "+ conv": {CONV}}),
        ("table", {"plain": set(), "+ cosine": {COSINE}, "+ RoPE": {ROPE}, "+ conv": {CONV}}),
        ("ladder", {"plain": set(), "+ cosine": {COSINE}, "+ RoPE": {COSINE, ROPE}, "+ conv": {COSINE, ROPE, CONV}}),
        (
            "leave-one-out",
            {
                "plain": {COSINE, ROPE, CONV},
                "without + cosine": {ROPE, CONV},
                "without + RoPE": {COSINE, CONV},
                "without + conv": {COSINE, ROPE},
            },
        ),
    ],
)
def test_the_rows_of_a_design(tmp_path, design, expected):
    study = ablation(tmp_path, design=design)
    assert {row.variant: changed_paths(study, row) for row in study.rows} == expected
    assert [row.variant for row in study.rows] == list(expected), "in the order of the table"


def test_a_factorial_has_every_combination(tmp_path):
    study = ablation(tmp_path, design="factorial")
    assert len(study.rows) == len({row.spec.digest for row in study.rows}) == 8
    assert study.rows[0].variant == "plain"
    assert {row.components for row in study.rows if len(row.components) == 2} == {
        ("+ cosine", "+ RoPE"),
        ("+ cosine", "+ conv"),
        ("+ RoPE", "+ conv"),
    }
    both = next(row for row in study.rows if row.variant == "+ cosine + + conv")
    assert changed_paths(study, both) == {COSINE, CONV}


def test_a_row_of_a_preset_stands_beside_the_ladder(tmp_path):
    aside = {"name": "all tokens", "preset": "dit-unet"}
    study = ablation(tmp_path, design="ladder", variants=[VARIANTS[0], aside, VARIANTS[1]])
    rows = {row.variant: row for row in study.rows}
    assert rows["all tokens"].spec.attention.tokens == "all"
    assert changed_paths(study, rows["+ RoPE"]) == {COSINE, ROPE}
    asked = {one.row.variant: one.reference.variant for one in comparisons(study.rows)}
    assert asked == {"+ cosine": "plain", "all tokens": "plain", "+ RoPE": "+ cosine"}


@pytest.mark.parametrize("design", ["ladder", "add-one-in"])
def test_what_adds_to_a_baseline_starts_from_its_preset(tmp_path, design):
    variants = [{"name": "base", "preset": "dit-unet", "set": {"heads": 1}}, *VARIANTS[:2]]
    study = ablation(tmp_path, design=design, baseline="base", variants=variants)
    rows = {row.variant: row.spec for row in study.rows}
    expected = rows["base"].replace({"attention.similarity": "cosine"})
    assert rows["+ cosine"].digest == expected.digest
    both = {"attention.position": "rope2d"} | ({"attention.similarity": "cosine"} if design == "ladder" else {})
    assert rows["+ RoPE"].digest == rows["base"].replace(both).digest


def test_a_mapping_in_set_replaces_what_it_names_alone(tmp_path):
    variants = [{"name": "nested", "set": {"attention": {"similarity": "cosine"}}}]
    study = ablation(tmp_path, variants=variants)
    assert changed_paths(study, study.rows[1]) == {COSINE}
    assert study.rows[1].spec.digest == study.base.replace({"attention.similarity": "cosine"}).digest


def test_a_named_baseline_is_one_of_the_variants(tmp_path):
    study = ablation(tmp_path, design="add-one-in", baseline="+ conv")
    rows = {row.variant: row for row in study.rows}
    assert next(iter(rows)) == "+ conv"
    assert rows["+ conv"].is_baseline
    assert changed_paths(study, rows["+ RoPE"]) == {ROPE, CONV}, "what is added comes on top of the baseline"


@pytest.mark.parametrize("by", ["channels", "feed_forward.ratio"])
@pytest.mark.parametrize(("control", "metric"), [("flop-matched", "gflops"), ("param-matched", "params_m")])
def test_a_control_solves_the_width_again(tmp_path, by, control, metric):
    study = ablation(tmp_path, "model.set.channels=16", design="ladder", controls=["raw", control], matched_by=by)
    raw = {row.variant: row for row in study.rows if row.control == "raw"}
    matched = {row.variant: row for row in study.rows if row.control == control}
    target = getattr(cost(raw["plain"].spec), metric)
    assert set(matched) == set(raw) - {"plain"}, "the baseline is what the others are matched to"
    for name, row in matched.items():
        assert getattr(cost(row.spec), metric) == pytest.approx(target, rel=0.01)
        assert row.match.within
        assert changed_paths(study, row) == changed_paths(study, raw[name])
        if by == "feed_forward.ratio":
            assert row.spec.channels == 16
    assert abs(getattr(cost(raw["+ conv"].spec), metric) / target - 1) > 0.01, "there was something to match"
    references = {(one.row.variant, one.row.control): one.reference for one in comparisons(study.rows)}
    assert references["+ cosine", control].control == "raw"
    assert references["+ conv", control] is matched["+ RoPE"]


def test_rows_of_equal_architecture_share_their_trials(tmp_path):
    twice = [*VARIANTS, {"name": "nothing", "set": {}}]
    study = ablation(tmp_path, variants=twice)
    assert len(study.rows) == 5
    assert study.most_trials == 4 * 3


def test_blocks_stand_side_by_side_with_presets_of_their_own(tmp_path):
    blocks = [
        {"name": "small", "baseline": "a", "preset": "u-dit-s", "variants": [{"name": "b", "set": {"attention.position": "none"}}]},
        {"name": "large", "baseline": "a", "preset": "u-dit-b", "variants": [{"name": "b", "preset": "u-dit-b-vanilla"}]},
    ]
    changes = ["model.set={}", "model.scale={channels: 0.125, depths: 0.25}"]
    study = ablation(tmp_path, *changes, blocks=blocks, design=None, baseline=None, variants=None)
    assert [(row.block, row.variant, row.spec.channels) for row in study.rows] == [
        ("small", "a", 12),
        ("small", "b", 12),
        ("large", "a", 24),
        ("large", "b", 24),
    ]
    assert {row.family for row in study.rows} == {"small", "large"}


@pytest.mark.parametrize(
    ("changes", "block", "words"),
    [
        ([], {"seeds": {"min": 2, "max": 6}}, "ablation.seeds: seeds.min 2 is too few to decide on more: take at least 3"),
        ([], {"seeds": {"min": 6, "max": 3}}, "seeds.max 3 is below seeds.min 6; exchange them"),
        ([], {"seeds": {"min": 3, "max": 3, "margin": 0.1}}, "seeds.margin says when to stop adding seeds"),
        ([], {"controls": ["flop-matched"]}, "controls leave out raw"),
        ([], {"controls": ["raw", "raw"]}, "controls name one twice (raw, raw); remove one"),
        ([], {"design": "ladders"}, "'ladders' is not one of 'ladder', 'add-one-in', 'leave-one-out', 'factorial' or 'table'"),
        ([], {"variants": [VARIANTS[0], VARIANTS[0]]}, "the variant '+ cosine' stands twice; rename one"),
        ([], {"variants": [{"name": "plain"}]}, "there is nothing to compare with the baseline 'plain'; add a variant"),
        ([], {"baseline": "+ conv", "design": "factorial"}, "of a factorial design is a row of its own"),
        ([], {"baseline": "+ RoPE", "design": "ladder"}, "'+ cosine' stands before '+ RoPE'; put it after"),
        ([], {"variants": [{"name": "x", "set": {"heads": 3}}]}, "'x' cannot be built: 3 heads do not fit"),
        ([], {"variants": [{"name": "x", "set": {"input_size": 32}}]}, "input_size is 32, but the data have 8"),
        ([], {"variants": [{"name": "x", "set": {"head": 2}}]}, "'x' cannot be built: no spec has 'head'"),
        ([], {"design": "factorial", "variants": [{"name": f"v{n}"} for n in range(7)]}, "7 components make 128 rows"),
        ([], {"desing": "ladder"}, "ablation: unknown key 'desing'; did you mean 'design'?"),
        ([], {"seed": 3}, "ablation: unknown key 'seed'; did you mean 'seeds'?"),
        ([], {"published": "udit_table99"}, "no published table 'udit_table99'; did you mean 'udit_table9'?"),
        ([], {"published": "udit_table9", "variants": [{"name": "x", "row": "DiT-Unet"}]}, "has no row 'DiT-Unet'; did you mean"),
        ([], {"variants": [{"name": "x", "row": "DiT-UNet"}]}, "'x' has a row, but the block names no published table"),
        ([], {"metric": "fid"}, "ablation.metric is fid, which evaluation.fid measures; add evaluation: {fid: {}}"),
        (
            ["evaluation.fid={samples: 255}"],
            {"metric": "fid_infinity"},
            "is fid_infinity, which needs at least 256 samples of clothes's features; raise evaluation.fid.samples from 255, or",
        ),
        ([], {"metric": "loss"}, "'loss' is not measured of a trial; known: val_loss, fid"),
        ([], {"blocks": [{"variants": VARIANTS}]}, "design stands beside blocks; move it into one of them"),
        (["budget.mode=stop"], {}, "budget.mode stop prunes, but an ablation trains every row to the end; remove it"),
        (
            ["budget.max=1 GFLOPs"],
            {},
            "a budget is either max (compute, such as '1.5 TFLOPs') or steps (of training) or images (seen in training); give one",
        ),
        (["finish={budget: 1 GFLOPs}"], {}, "finish trains winners on, but the rows of an ablation are compared at one budget"),
        (["search={space: {heads: [1, 2]}, trials: 2}"], {}, "a study holds either search or ablation; give one of them"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, changes, block, words):
    with pytest.raises(ToolkitError) as caught:
        ablation(tmp_path, *changes, **block)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_components_that_set_the_same_path_cannot_be_put_together(tmp_path):
    clash = [*VARIANTS, {"name": "again", "set": {"attention.position": "none"}}]
    with pytest.raises(ToolkitError, match="'again' and another component both set attention.position"):
        ablation(tmp_path, design="factorial", variants=clash)


def test_a_study_lies_over_the_one_it_extends(tmp_path):
    ablation(tmp_path)
    small = "extends: ablation.yaml\nname: small\nablation: {seeds: 5}\nbudget: {steps: null, max: 1 GFLOPs}\n"
    (tmp_path / "small.yaml").write_text(small)
    (tmp_path / "smaller.yaml").write_text("extends: small.yaml\ntraining:\n  batch_sise: 4\n")
    (tmp_path / "smallest.yaml").write_text("extends: small.yaml\nname: smallest\n")
    smallest = load_study(tmp_path / "smallest.yaml")
    assert (smallest.name, smallest.ablation.seeds.min, len(smallest.rows)) == ("smallest", 5, 4)
    study = load_study(tmp_path / "small.yaml")
    assert (study.name, study.ablation.seeds.min, study.budget.full) == ("small", 5, 10**9)
    assert [row.variant for row in study.rows] == ["plain", "+ cosine", "+ RoPE", "+ conv"], "the rows stand in the other file"
    with pytest.raises(ToolkitError, match=r"smaller\.yaml:3: unknown key 'training\.batch_sise'; did you mean 'batch_size'"):
        load_study(tmp_path / "smaller.yaml")


def test_a_mistake_is_told_where_it_stands(tmp_path):
    ablation(tmp_path)
    base = tmp_path / "ablation.yaml"
    data = yaml.safe_load(base.read_text())
    data["training"]["learning_rate"] = -1
    base.write_text(yaml.safe_dump(data, sort_keys=False))
    line = next(n for n, text in enumerate(base.read_text().splitlines(), 1) if "learning_rate" in text)
    (tmp_path / "small.yaml").write_text("extends: ablation.yaml\nname: small\n")
    with pytest.raises(ToolkitError, match=rf"ablation\.yaml:{line}: training\.learning_rate"):
        load_study(tmp_path / "small.yaml")


REFUSED = [
    {"name": "a", "set": {"attention.similarity": "cosin"}},
    {"name": "b", "set": {"attention.position": "none", "channels": 13}},
    {"name": "c", "set": {"feed_forward.kind": "cnov"}},
]
"""In a ladder and a factorial, several rows hold each of these."""


@pytest.mark.parametrize("design", ["table", "ladder", "add-one-in", "leave-one-out", "factorial"])
@pytest.mark.parametrize("several", [False, True])
def test_every_row_that_cannot_be_built_is_told_once_with_its_own_line(tmp_path, design, several):
    block = {"design": design, "baseline": "plain", "variants": REFUSED}
    given = {"seeds": 3} | ({"blocks": [{"name": "one", **block}]} if several else block)
    ablation(tmp_path)
    path = tmp_path / "ablation.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"ablation": given}, sort_keys=False))
    lines = path.read_text().splitlines()
    with pytest.raises(Mistakes) as caught:
        load_study(path)
    told = sorted(what.split(":")[1] for _, what in caught.value.each)
    assert told == [str(1 + next(n for n, line in enumerate(lines) if word in line)) for word in ("cosin", "13", "cnov")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nowhere.yaml\n", "there is no file nowhere.yaml beside it to extend"),
        ("extends: circle.yaml\n", "extends this file in turn"),
        ("extends: [a]\n", "extends is the path of another study"),
    ],
)
def test_what_cannot_be_extended(tmp_path, text, words):
    (tmp_path / "circle.yaml").write_text("name: a\n" + text)
    with pytest.raises(ToolkitError, match=words):
        load_study(tmp_path / "circle.yaml")
