"""Export: a trained trial as a model folder with a card, and a grid of its samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nas.data.codec import VAE_PREFIX
from nas.data.codecs import placed
from nas.data.header import CodecRecord
from nas.data.sources import open_data
from nas.diffusion.generate import sample
from nas.diffusion.prediction import Prediction, prediction
from nas.evaluation.decoding import decoder_of, decoding_of
from nas.evaluation.evaluate import evaluate_model
from nas.evaluation.extractors import extractor_named
from nas.evaluation.images import write_grid
from nas.evaluation.reference import reference_of_split
from nas.runs.confirmations import conclusion
from nas.runs.events import Exported
from nas.runs.layout import CARD, EXPORTS, checkpoint_path
from nas.runs.records import State
from nas.runs.run import Run, TrialResult
from nas.runs.winners import leading
from nas.study.nuisance import in_words, settings_of
from nas.study.settings import PredictionSettings, SampleSettings
from nas.study.study import Study
from nas.training.checkpoint import read_checkpoint
from nas.training.trainer import ema_name
from space.errors import RunError
from space.files import replace_file
from space.model.network import Network
from space.weights import load, save

BATCH = 8
"""Images of a grid that are sampled at once: few, so that progress shows on a slow machine."""


def select(run: Run, which: str) -> list[TrialResult]:
    """Select trials of a run.

    Args:
        run: The run.
        which: `best`, the confirmed one where there is one; `pareto:K`, at most K trials of the run's front, the best by its metric
            first; or a trial's number.

    Returns:
        The trials; except by number, only complete ones.

    Raises:
        RunError: If `which` is none of these, or there is no such trial.
    """
    complete = run.in_state(State.COMPLETE)
    if which.isdecimal():
        if int(which) not in run.trials:
            raise RunError(f"no trial {which}; the run has 0 to {len(run.trials) - 1}")
        return [run.trials[int(which)]]
    if not complete:
        raise RunError("no trial is complete yet, so there is none to choose; run the study on, or name a trial's number")
    if not run.best():
        raise RunError("no seed has ended in every row yet, so none is the best; run the study on, or name a trial's number")
    if which == "best":
        return leading(run, 1) or run.best()
    kind, _, count = which.partition(":")
    if kind != "pareto" or not count.isdecimal() or int(count) < 1:
        raise RunError(f"'{which}' selects nothing; write best, pareto:K or a trial's number")
    return run.front()[: int(count)]


def export(run: Run, trial: TrialResult, run_folder: Path, out: Path, ema: float | None = None) -> Network:
    """Write a trial as a model folder: spec, averaged weights in folded form, and card.

    Args:
        run: The run.
        trial: The trial.
        run_folder: The run directory, which has the trial's checkpoint.
        out: The folder to write to.
        ema: The decay of the averaged weights, one of the trial's; the first by default.

    Returns:
        The model as read back from the folder.

    Raises:
        RunError: If the trial has no checkpoint, or keeps no average of that decay.
    """
    study, path = run.study, checkpoint_path(run_folder, trial.name)
    stored = read_checkpoint(path)
    if stored is None:
        raise RunError(f"{path} is missing or damaged, so trial {trial.number} cannot be exported; choose another trial")
    tensors, checkpoint = stored
    model = Network(trial.spec)
    training = study.training_of(trial)
    decay = ema if ema is not None else training.ema[0]
    prefix = f"{ema_name(decay)}."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not weights:
        raise RunError(
            f"trial {trial.number} keeps no average of decay {decay:g}; it has {', '.join(f'{d:g}' for d in training.ema)}"
        )
    model.load_state_dict(weights)
    facts = _facts(study, trial, checkpoint["step"], decay)
    save(model, out, facts)
    try:
        with replace_file(out / CARD) as file:
            file.write(_card(run, trial, facts).encode())
    except OSError as error:
        raise RunError(f"{out} cannot be written: {error.strerror or error}") from None
    return load(out)


def exported(study: Study, trial: TrialResult, without_samples: str | None = None) -> Exported:
    """The event of a trial's export in its present state; `without_samples` is the reason why it has no samples, if any."""
    evaluation = study.evaluation.model_dump(mode="json")
    return Exported(
        trial=trial.number,
        folder=f"{EXPORTS}/{trial.name}",
        macs=trial.reports[-1].macs,
        samples=evaluation["samples"],
        fid=evaluation["fid"],
        without_samples=without_samples,
    )


def export_due(study: Study, trial: TrialResult) -> bool:
    """Whether a trial must be exported (again): it has trained on, or its sample settings have changed."""
    last, now = trial.export, exported(study, trial)
    if last is None or (last.macs, last.fid) != (now.macs, now.fid):
        return True
    # Today's settings may have keys that an export of an earlier version did not write.
    before = None if last.samples is None else SampleSettings.model_validate(last.samples)
    return before != study.evaluation.samples


def write_samples(
    model: Network,
    facts: dict[str, Any],
    settings: SampleSettings,
    path: Path,
    classes: Sequence[int],
    *,
    decoding: CodecRecord | None = None,
    bar: Callable[[int], None] = lambda count: None,
) -> None:
    """Write a PNG grid of sampled images, one row per class; without guidance when the model has no null class.

    Args:
        model: The model.
        facts: The facts of its model folder.
        settings: The sampler, its steps, guidance and seed, and the images per class.
        path: The PNG file to write.
        classes: The labels, one row each.
        decoding: The record of the codec of the model's latents; by default that of the facts.
        bar: Called with the number of images after each batch.

    Raises:
        RunError: If nothing names the codec, or the picture cannot be written.
        DataError: If the codec is not here, or does not fit the model.
    """
    if path.suffix != ".png":
        raise RunError(f"{path}: the picture is a PNG file; give a name that ends in .png")
    if not path.parent.is_dir():
        raise RunError(f"{path.parent} is no folder; create it, or write the picture elsewhere")
    codec = decoder_of(decoding or decoding_of(facts), model.spec.in_channels)
    labels = [label for label in classes for _ in range(settings.per_class)]
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    latents = sample(
        model,
        labels,
        prediction=trained_for(facts),
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance if model.spec.null_class else 1.0,
        guided_channels=codec.guided_channels,
        bound=codec.bound,
        seed=settings.seed,
        batch_size=BATCH,
        bar=bar,
    )
    write_grid(codec.decode(latents.numpy()), settings.per_class, path)


def write_evaluation(
    model: Network, facts: dict[str, Any], study: Study, path: Path, bar: Callable[[int], None] = lambda count: None
) -> None:
    """Write the report of `nas evaluate` on a model, with `evaluation.fid` as settings; raises DataError for too few samples."""
    settings = study.evaluation.fid
    assert settings is not None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = extractor_named(settings.extractor, device=device)
    reference = reference_of_split(open_data(study.data).train, "train", extractor, device)
    decoding = decoding_of(facts)
    codec = decoder_of(decoding, model.spec.in_channels)
    report = evaluate_model(model.to(device), codec, trained_for(facts), extractor, reference, settings, bar=bar)
    text = json.dumps({"codec": decoding.model_dump(), **report}, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def trained_for(facts: dict[str, Any]) -> Prediction:
    """The prediction in a model folder's facts; the papers' noise prediction where they have none, as imported checkpoints."""
    return prediction(PredictionSettings.model_validate(facts.get("prediction", facts.get("objective", {}))))


def _facts(study: Study, trial: TrialResult, step: int, decay: float) -> dict[str, Any]:
    last, header, training = trial.reports[-1], study.header, study.training_of(trial)
    decoding = header.decoding
    if study.data.codec and study.data.codec.startswith(VAE_PREFIX):
        # The study names the place of its store's VAE, which may have changed since the run began.
        decoding = decoding.model_copy(update={"name": placed(study.data.codec)})
    return {
        "study": study.name,
        "trial": trial.number,
        "source": header.source,
        "data": study.data.model_dump(mode="json"),
        "codec": decoding.model_dump(),
        "class_names": list(header.class_names),
        "step": step,
        "images": last.images,
        "train_tflops": last.macs / 1e12,
        "val_loss": last.val_loss,
        "val_loss_ema": training.ema[0],
        "ema": decay,
        "prediction": training.prediction.model_dump(mode="json"),
        "training": settings_of(training),
    }


def _confirmed(run: Run, trial: TrialResult) -> str:
    """A row of the card on what is known of a search's trial beyond the seeds that chose it; empty for an ablation's."""
    if run.study.ablation:
        return ""
    chosen = run.confirmed is not None and run.confirmed.chosen == trial.number
    return f"| confirmed on fresh seeds | {conclusion(run) if chosen else 'no: the loss above is of the seeds that chose it'} |\n"


def _card(run: Run, trial: TrialResult, facts: dict[str, Any]) -> str:
    study, cost = run.study, trial.cost
    trained = f"{facts['images']:,} images, {facts['train_tflops']:.3f} TFLOPs"
    tuned = in_words(study.tuned_of(trial))
    own = f"\n| training settings, tuned (no part of the architecture) | {tuned} |" if tuned else ""
    return f"""# {trial.name}

Trial {trial.number} of study `{study.name}`: {study.question or "no question stated"}

| | |
| --- | --- |
| validation loss (averaged weights) | {facts["val_loss"]:.5f} |
| GFLOPs (multiply-accumulates / 1e9, folded, batch 1) | {cost.gflops:.4f} |
| parameters, folded / in training | {cost.params:,} / {cost.params_training:,} |
{_confirmed(run, trial)}| trained on | {facts["source"]} through {facts["codec"]["name"]}, {trained} |{own}

```python
import space
model = space.load("{trial.name}")  # folded, eval mode: forward(x, t, y), forward_with_cfg(x, t, y, scale)
```

`spec.yaml` is the architecture, `model.safetensors` its weights with these facts as metadata.
"""
