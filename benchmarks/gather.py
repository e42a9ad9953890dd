"""Training batches from a store against a PyTorch DataLoader over per-sample .npy files, as fast-DiT reads them; one core.

`python -m benchmarks.gather [--samples N] [--batch-size N]`. Both sides read the same latents (4×32×32 float32) in the same
random order from files that the page cache holds, so what is measured is the work per sample, not the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, SequentialSampler

from nas.data.codecs import codec_named
from nas.data.feed import Feed
from nas.data.prepare import prepare_store
from nas.data.readers import FeatureFiles
from nas.data.settings import DEFAULT_VAE
from nas.data.store import Split


class FilePerSample(Dataset):
    """One .npy file for a sample's latents and one for its label."""

    def __init__(self, folder: Path, order: torch.Tensor) -> None:
        self.folder, self.order = folder, order.tolist()

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sample = self.order[index]
        features = np.load(self.folder / "x_features" / f"{sample}.npy")
        labels = np.load(self.folder / "x_labels" / f"{sample}.npy")
        return torch.from_numpy(features), torch.from_numpy(labels)


def write_files(folder: Path, samples: int) -> None:
    rng = np.random.default_rng(0)
    for name in ("x_features", "x_labels"):
        (folder / name).mkdir()
    for i in range(samples):
        np.save(folder / "x_features" / f"{i}.npy", rng.standard_normal((1, 4, 32, 32), dtype=np.float32))
        np.save(folder / "x_labels" / f"{i}.npy", rng.integers(0, 1000, 1))


def from_files(folder: Path, order: torch.Tensor, batch_size: int) -> float:
    """Samples a second, in this process: workers would need more cores."""
    found = FilePerSample(folder, order)
    start, total = time.perf_counter(), 0.0
    for latents, labels in DataLoader(found, batch_size, sampler=SequentialSampler(found)):
        total += latents.squeeze(1)[0, 0, 0, 0].item() + labels[0].item()
    return len(order) / (time.perf_counter() - start)


def from_store(folder: Path, order: torch.Tensor, batch_size: int) -> float:
    from nas.data.store import open_store

    store = open_store(folder)
    feed = Feed(Split(store, np.arange(len(store))), torch.device("cpu"))
    start, total = time.perf_counter(), 0.0
    for index in order.split(batch_size):
        total += feed.latents(index)[0, 0, 0, 0].item() + feed.labels[index][0].item()
    return len(order) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    how = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        files, store = Path(place), Path(place) / "store"
        write_files(files, how.samples)
        prepare_store(FeatureFiles(files, codec_named(DEFAULT_VAE)), store)
        order = torch.randperm(how.samples, generator=torch.Generator().manual_seed(0))
        for repeat in range(how.repeats):
            slow, fast = from_files(files, order, how.batch_size), from_store(store, order, how.batch_size)
            print(f"{repeat}: files {slow:,.0f} samples/s, store {fast:,.0f} samples/s, ratio {fast / slow:.1f}")


if __name__ == "__main__":
    main()
