"""Tiny datasets for the tests of datasets and loaders."""

import itertools

from torch.utils.data import Dataset, IterableDataset


class Numbers(Dataset):
    """Item i is wide if i is a multiple of 3, else high."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return {"i": i, "width": 20 if i % 3 == 0 else 10, "height": 15}


class Stream(IterableDataset):
    def __iter__(self):
        return (Numbers(10)[i] for i in range(10))


def identity(x):
    return x


def ids(batches, n=None):
    return [[d["i"] for d in batch] for batch in itertools.islice(batches, n)]
