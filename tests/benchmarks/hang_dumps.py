"""Scores the offline analysis on simulated dumps: every class, each kind of job, near misses.

python -m tests.benchmarks.hang_dumps            # all cases, a table (half a minute)
python -m tests.benchmarks.hang_dumps --drop     # each case without each of its dumps (minutes)
python -m tests.benchmarks.hang_dumps --random 2000   # random places, often a dump missing
python -m tests.benchmarks.hang_dumps --fuzz 2000     # random jobs, faults and forms of dumps
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections import Counter
from pathlib import Path

from tests.support.dump_fuzz import judged, random_hang
from tests.support.hang_cases import cases, random_case
from tests.support.hang_score import judge, table


def main() -> None:
    """Score, and list what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--random", type=int, metavar="NUMBER")
    parser.add_argument("--fuzz", type=int, metavar="NUMBER")
    parser.add_argument("--seed", type=int, default=0, help="of the first of --fuzz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if options.random:
            _random(options.random, directory)
            return
        if options.fuzz:
            _fuzz(range(options.seed, options.seed + options.fuzz), directory / "dumps")
            return
        if not options.drop:
            results = [judge(case, directory) for case in cases()]
            print(table(results))
            for result in results:
                if not (result.is_allowed and result.is_class):
                    print(f"wrong: {result.case.name}: {result.classes} {sorted(result.suspects)}")
            return
        num_trials = num_bad = 0
        for case in cases():
            for rank in range(len(case.job.ranks)):
                result = judge(case, directory, without=rank)
                num_trials += 1
                num_bad += result.has_innocent
                if result.has_innocent:
                    print(f"innocent: {case.name} without {rank}: {sorted(result.suspects)}")
        print(f"{num_trials} dumps dropped, {num_bad} times an innocent rank was named")


def _random(num_trials: int, directory: Path) -> None:
    rng = random.Random(20261121)
    counts: Counter[str] = Counter()
    for _ in range(num_trials):
        case = random_case(rng)
        without = rng.choice([None, None, rng.randrange(len(case.job.ranks))])
        result = judge(case, directory, without=without)
        form = "whole" if without is None else "one dump missing"
        counts[f"{form}: trials"] += 1
        counts[f"{form}: exact set"] += result.is_exact
        counts[f"{form}: some of the faulty ranks, nobody else"] += (
            bool(result.suspects) and result.suspects < case.suspects
        )
        counts[f"{form}: an innocent rank named"] += result.has_innocent
        if result.has_innocent:
            print(f"innocent: {case.name} without {without}: {sorted(result.suspects)}")
    for name, number in sorted(counts.items()):
        print(f"{name}: {number}")


def _fuzz(seeds: range, directory: Path) -> None:
    counts: dict[str, Counter[str]] = {}
    for seed in seeds:
        outcome = judged(random_hang(random.Random(seed)), directory)
        hang = outcome.hang
        form = "one dump or more missing" if hang.form.missing else "whole"
        form += ", short rings" if hang.form.rings else ""
        row = counts.setdefault(form if hang.faults else "no fault", Counter())
        row["hangs"] += 1
        row["exact set"] += outcome.is_exact
        row["some"] += bool(outcome.named) and outcome.named.keys() < hang.faults.keys()
        row["innocent named"] += bool(outcome.innocents)
        row["class wrong"] += outcome.is_class_wrong
        if outcome.innocents or outcome.is_class_wrong:
            print(f"wrong: seed {seed}: {hang.name}: {outcome.named} {hang.form}")
    columns = ("hangs", "exact set", "some", "innocent named", "class wrong")
    print(f"| form | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for form, row in sorted(counts.items()):
        print(f"| {form} | {' | '.join(str(row[column]) for column in columns)} |")


if __name__ == "__main__":
    main()
