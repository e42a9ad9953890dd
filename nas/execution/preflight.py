"""Checks before a study is run: its data exist and have enough samples."""

from __future__ import annotations

from nas.data.codecs import codec_named
from nas.data.sources import open_data
from nas.data.store import check_mirrored
from nas.study.study import Study
from space.errors import DataError


def check_data(study: Study) -> None:
    """Open a study's data and check that they suffice for validation and evaluation.

    Raises:
        DataError: If data are missing or damaged, fewer images are held out than validation needs, or the feature extractor of
            `evaluation.fid` is missing or needs more samples.
    """
    if study.data.flip:
        check_mirrored(study.data.source, study.header, codec_named(study.header.codec))
    held_out = len(open_data(study.data).validation)
    wanted = study.evaluation.val_loss.images
    if wanted > held_out:
        raise DataError(f"evaluation.val_loss.images is {wanted}, but only {held_out} images are held out; lower it")
    if study.evaluation.fid is not None:
        from nas.evaluation.evaluate import check_count
        from nas.evaluation.extractors import extractor_named

        check_count(study.evaluation.fid.samples, extractor_named(study.evaluation.fid.extractor).dimensions)


def check_place(study: Study) -> None:
    """Before training, check that this machine has what samples are judged with, if the study judges them.

    Raises:
        DataError: If the feature extractor or the VAE is missing or damaged.
    """
    if study.evaluation.fid is not None:
        import torch

        from nas.training.scores import check_judge

        check_judge(study.data, study.evaluation.fid.extractor, torch.device("cpu"))
