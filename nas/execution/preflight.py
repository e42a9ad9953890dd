"""Checks before a study is run: its data exist and have enough samples."""

from __future__ import annotations

import numpy as np

from nas.data.codecs import codec_named
from nas.data.sources import DataSet, open_data, share_for
from nas.data.store import check_mirrored
from nas.study.study import Study
from space.errors import DataError


def check_data(study: Study) -> None:
    """Open a study's data and check that they suffice for validation and evaluation.

    Raises:
        DataError: If data are missing or damaged or not of their codec, a class has no sample, fewer images are held out than
            validation needs, or the feature extractor of `evaluation.fid` is missing or needs more samples.
    """
    if study.data.flip:
        check_mirrored(study.data.source, study.header, codec_named(study.header.codec))
    codec_named(study.header.codec).check_latents(study.header.shape)
    data = open_data(study.data)
    if empty := data.store.header.without_samples:
        raise DataError(
            f"{study.data.source} has {len(empty)} classes without a sample ({', '.join(empty[:10])}), which would be sampled and "
            "scored; prepare the store again, which leaves them out"
        )
    _check_held_out(study, data)
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


def _check_held_out(study: Study, data: DataSet) -> None:
    """Raise DataError when validation needs more images than are held out; the message says which share would do."""
    held_out, wanted = len(data.validation), study.evaluation.val_loss.images
    if wanted <= held_out:
        return
    labels, share = data.store.labels, study.data.held_out
    per_class = np.unique(labels, return_counts=True)[1]
    classes = f"{len(labels):,} in {len(per_class)} classes of {per_class.min():,}"
    classes += f" to {per_class.max():,}" if per_class.min() < per_class.max() else ""
    enough = share_for(labels, wanted)
    mend = f"set data.held_out to {enough:g} or more" if enough else "no share up to 0.5 holds out so many, so take more data"
    lower = f", or lower it to {held_out}" if held_out else ""
    raise DataError(
        f"evaluation.val_loss.images is {wanted}, but only {held_out} images are held out: data.held_out is {share:g} of "
        f"{classes}; {mend}{lower}"
    )
