import pytest

from nas.execution.smoke import calibration_line
from nas.runs.calibrations import (
    CALIBRATION,
    CalibratedRung,
    Calibration,
    RungFigures,
    known_calibration,
    known_spread,
    read_calibration,
    write_calibration,
)
from nas.study.calibration import OWN, protocol_digest, space_digest
from nas.study.load import load_study
from space.errors import RunError


def calibration(study, folder, seeds=3, icc=0.4, needed=12, space=None):
    """A written calibration of a study's own protocol."""
    figures = RungFigures(
        architectures=6,
        seeds=seeds,
        between_sd=0.1,
        seed_sd=0.2,
        within_sd=0.123,
        icc=icc,
        icc_low=-0.1,
        icc_high=0.8,
        difference=0.1,
        seeds_needed=needed,
        price=None if needed is None else needed * 2e8,
        half_tau=0.5,
        reference_tau=None,
    )
    row = CalibratedRung(
        protocol=OWN,
        changes=(),
        digest=protocol_digest(study),
        rung=3,
        last=True,
        macs=2e8,
        planned=6 * seeds,
        failed=0,
        figures=figures,
    )
    found = Calibration(
        study=study.name,
        space=space or space_digest(study),
        metric="val_loss",
        architectures=("0",),
        reference=None,
        rows=(row,),
        protocol=OWN,
        rung=3,
        verdict="kept",
    )
    folder.mkdir(parents=True)
    write_calibration(found, folder)
    return found


def test_what_is_written_is_read(tiny, tmp_path):
    found = calibration(tiny, tmp_path / "c")
    assert read_calibration(tmp_path / "c") == found


def test_without_one_the_smoke_lines_say_so(tiny, tmp_path):
    assert known_calibration(tiny, tmp_path / "nowhere") is None
    assert known_spread(tiny, tmp_path) == ""
    assert calibration_line(tiny, tmp_path).startswith("smoke: no calibration of this protocol is known (nas calibrate)")


def test_a_known_one_is_told_with_what_it_found(tiny, tiny_file, tmp_path):
    calibration(tiny, tmp_path / "tiny-calibration")
    line = calibration_line(tiny, tmp_path)
    assert line == (
        "smoke: at one seed, 40% [0%, 80%] of the variance of scores is the architectures' and the rest a seed's (SD 0.12); "
        "12 seeds tell two architectures one SD apart (calibration tiny-calibration)"
    )
    other = load_study(tiny_file, ["training.clip_norm=1"])
    assert "no calibration of this protocol is known" in calibration_line(other, tmp_path)


def test_of_several_the_same_space_counts_first_and_then_the_largest(tiny, tmp_path):
    calibration(tiny, tmp_path / "a", seeds=9, space="another")
    assert "(calibration a, of other architectures)" in known_spread(tiny, tmp_path)
    calibration(tiny, tmp_path / "b", seeds=2)
    calibration(tiny, tmp_path / "c", seeds=3, icc=-0.05, needed=None)
    assert known_spread(tiny, tmp_path).startswith("at one seed, 0% [")
    assert "no number of seeds tells two architectures" in known_spread(tiny, tmp_path)
    assert known_spread(tiny, tmp_path).endswith("(calibration c)")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"study": 1}', b"\xff\xfe"])
def test_a_damaged_one_is_skipped_and_named_when_it_is_asked_for(tiny, tmp_path, damage):
    calibration(tiny, tmp_path / "c")
    (tmp_path / "c" / CALIBRATION).write_bytes(damage)
    assert known_calibration(tiny, tmp_path) is None
    with pytest.raises(RunError, match=f"{CALIBRATION} is damaged, or of another version"):
        read_calibration(tmp_path / "c")
    with pytest.raises(RunError, match="cannot be read: No such file"):
        read_calibration(tmp_path / "d")
