"""``python -m tests.faults``: every campaign in full, and a table of what happened."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.faults import damage, disk, fuzz, hostile, kills, rewriting_kills
from tests.faults.counts import table

CAMPAIGNS = {
    "kill -9 of a dump": (kills.dump_kills, 200),
    "kill -9 of a training run": (kills.training_kills, 50),
    "kill -9 of what makes caches out of caches": (rewriting_kills.rewriting_kills, 100),
    "damaged files": (damage.campaign, 1000),
    "a full disk, and two dumps at once": (disk.disk, 60),
    "forged caches": (hostile.campaign, 1),
    "forged caches of uneven entries, draws and few bits": (hostile.third_campaign, 1),
    "fuzzing": (fuzz.campaign, 20_000),
}


def main() -> None:
    """Run the campaigns, print a table as each ends. A failure is a traceback that names the round."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of everything but the instants of real kills")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full number of rounds")
    given = parser.parse_args()
    for name, (campaign, times) in CAMPAIGNS.items():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="softlabels-faults-") as folder:
            counts = campaign(Path(folder), max(1, round(times * given.share)), given.seed)
        print(table(f"{name} ({time.perf_counter() - began:.0f} s)", counts), flush=True)


if __name__ == "__main__":
    main()
