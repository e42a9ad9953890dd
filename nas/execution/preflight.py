"""Checks before a study is run: its data exist and have enough samples."""

from __future__ import annotations

import numpy as np

from nas.data.codecs import codec_named
from nas.data.sources import DataSet, is_absent, open_data, share_for
from nas.data.store import check_mirrored
from nas.study.confirmation import confirmation_study
from nas.study.study import Study
from space.costs.cost import cost
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


def check_confirmation(study: Study) -> None:
    """Check, before a search, that its best could be confirmed: the ablation is allowed, and its data have the images for it.

    Raises:
        StudyError: The ablation that confirms would be refused.
        DataError: Fewer images are held out than the search and its confirmation need, which share none.
    """
    if study.confirm is None or study.search is None:
        return
    baseline = study.hand_made[1].digest
    others = [spec for spec in study.architectures if spec.digest != baseline]
    if not others:
        return
    confirmation = confirmation_study(study, {"the dearest": max(others, key=lambda spec: cost(spec).gflops)})
    if study.data.expected and is_absent(study.data):
        return
    try:
        _check_held_out(confirmation, open_data(study.data))
    except DataError as error:
        raise DataError(f"confirm takes images that no trial of the search is judged by: {error}") from None


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
    settings = study.evaluation.val_loss
    held_out, wanted = len(data.validation), settings.images + settings.skip
    if wanted <= held_out:
        return
    labels, share = data.store.labels, study.data.held_out
    per_class = np.unique(labels, return_counts=True)[1]
    classes = f"{len(labels):,} in {len(per_class)} classes of {per_class.min():,}"
    classes += f" to {per_class.max():,}" if per_class.min() < per_class.max() else ""
    enough = share_for(labels, wanted)
    mend = f"set data.held_out to {enough:g} or more" if enough else "no share up to 0.5 holds out so many, so take more data"
    most = held_out - settings.skip
    lower = f", or lower it to {most}" if most >= 8 else ""
    after = f" after the first {settings.skip}" if settings.skip else ""
    raise DataError(
        f"evaluation.val_loss.images is {settings.images}{after}, but only {held_out} images are held out: data.held_out is "
        f"{share:g} of {classes}; {mend}{lower}"
    )
