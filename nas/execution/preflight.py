"""Checks before a study is run: its data exist and have enough samples."""

from __future__ import annotations

from nas.data.sources import check_flip, open_data
from nas.study.study import Study
from space.errors import DataError


def check_data(study: Study) -> None:
    """Open a study's data and check that they suffice for validation and evaluation.

    Raises:
        DataError: If data are missing or damaged, fewer images are held out than validation needs, or the feature extractor of
            `evaluation.fid` is missing or needs more samples.
    """
    check_flip(study.data, study.header)
    held_out = len(open_data(study.data).validation)
    wanted = study.evaluation.val_loss.images
    if wanted > held_out:
        raise DataError(f"evaluation.val_loss.images is {wanted}, but only {held_out} images are held out; lower it")
    if study.evaluation.fid is not None:
        from nas.evaluation.evaluate import check_count
        from nas.evaluation.extractors import extractor_named

        check_count(study.evaluation.fid.samples, extractor_named(study.evaluation.fid.extractor).dimensions)
