"""Samples a second of torch's DataLoader over 50,000 tokenised pairs of 20 to 64 ids: batches of 32, padded to their longest, shuffled.

usage: data.py loader [--workers 0] [--epochs 3]        Prints {"samples_per_s"}: the median epoch, from its second batch on.
"""
import argparse
import random
import time

import common


class Pairs:
    def __init__(self, count=50_000):
        draw = random.Random(0)
        self.rows = [([draw.randrange(30_000) for _ in range(draw.randint(20, 64))], draw.randint(0, 1)) for _ in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def pad(rows):
    import torch
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, (sample, _) in enumerate(rows):
        ids[row, :len(sample)] = torch.tensor(sample)
        mask[row, :len(sample)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in rows])}


def loader(options):
    import torch
    from torch.utils.data import DataLoader
    torch.set_num_threads(1)
    rates, batches = [], DataLoader(Pairs(), batch_size=32, shuffle=True, num_workers=options.workers, collate_fn=pad)
    for _ in range(options.epochs):
        count, start = 0, None
        for batch in batches:
            if start is None:
                start = time.perf_counter()
            else:
                count += len(batch["labels"])
        rates.append(count / (time.perf_counter() - start))
    common.emit(samples_per_s=common.median(rates))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["loader"])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    loader(parser.parse_args())
