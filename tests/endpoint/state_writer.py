"""A process to be killed: writes checkpoints that anybody can work out, and says when each is confirmed."""

import random
import sys
from pathlib import Path

from endpoint.state.sqlite import AssociationFile

ASSOCIATIONS = 10_000
CHANGED = 5_000
"""So many that SQLite's cache is too small, and pages of an open transaction are in the database."""
CHECKPOINTS = 6


def changes(number):
    """Checkpoint ``number``: (handle, blob) that are saved, and handles that are removed."""
    draw = random.Random(number)
    handles = draw.sample(range(ASSOCIATIONS), CHANGED)
    saved = [(b"c%08d" % handle, b"%d of %d " % (number, handle) * 60) for handle in handles[50:]]
    removed = [b"c%08d" % handle for handle in handles[:50]]
    return saved, removed


def main(path, first):
    # Before, so that nearly all of its time is spent with the file.
    prepared = {number: changes(number) for number in range(int(first), int(first) + CHECKPOINTS)}
    with AssociationFile(Path(path)) as file:
        print("generation", file.generation, flush=True)
        for number, (saved, removed) in prepared.items():
            print("writing", number, flush=True)
            file.apply(saved, removed, anchor=b"%d" % number)
            print("written", number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
