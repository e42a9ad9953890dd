"""What is checked before a study is run: that its data are there, and hold enough."""

from __future__ import annotations

from nas.data.sources import check_flip, open_data
from nas.study.study import Study
from space.errors import DataError


def check_data(study: Study) -> None:
    """Read a study's data.

    Raises:
        DataError: When they are missing or damaged, fewer images are held out than validation needs, or what judges finished models
            is missing or needs more samples.
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
