"""Injection of documents at one setting for all: base, oracle, trained and kept-out rows as one Markdown table.

    python benchmarks/injection.py DATA [--out runs/injection] [--seeds 17] [--set train.n_epochs=5 ...]

DATA is a folder with one folder a document, each holding document.md, facts.jsonl and qa.jsonl. Every document
is run with the first seed, the first document with all of them. Finished runs are reused, so a killed benchmark
goes on where it stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

METRICS = ("exact_match", "f1", "gold_recall", "contains")
HEADER = (
    "| document | seed | row | n | EM % | F1 % | gold tokens % | contained % | bits per byte | training s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table_rows(name: str, report: dict[str, Any]) -> list[str]:
    """One Markdown line for each row of a report."""
    lines: list[str] = []
    for row in report["rows"]:
        metrics = row["metrics"]
        cells = [_share(metrics[metric]) for metric in METRICS]
        bits = metrics.get("bits_per_byte/generic", {}).get("value")
        seconds = f"{report['training']['seconds']:.0f}" if row["name"] in ("adapter", "model") else ""
        lines.append(
            f"| {name} | {report['seed']} | {row['name']} | {metrics['f1']['n']} | {' | '.join(cells)} "
            f"| {'' if bits is None else f'{bits:.3f}'} | {seconds} |"
        )
    return lines


def _share(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/injection"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--scale", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17])
    parser.add_argument(
        "--documents", nargs="+", help="names of the documents to run; the first has all seeds"
    )
    parser.add_argument("--set", dest="settings", action="append", default=[])
    arguments = parser.parse_args()
    names = arguments.documents or sorted(
        p.name for p in arguments.data.iterdir() if (p / "qa.jsonl").is_file()
    )
    runs = [(name, arguments.seeds[0]) for name in names] + [(names[0], seed) for seed in arguments.seeds[1:]]
    lines: list[str] = []
    for name, seed in runs:
        folder, out = arguments.data / name, arguments.out / f"{name}-{seed}"
        command = [sys.executable, "-m", "transfuse.cli", "inject", str(folder / "document.md")]
        command += ["--facts", str(folder / "facts.jsonl"), "--qa", str(folder / "qa.jsonl")]
        command += ["--model", arguments.model, "--scale", str(arguments.scale), "--seed", str(seed)]
        command += ["--out", str(out), *(part for each in arguments.settings for part in ("--set", each))]
        subprocess.run(command, check=True)
        lines += table_rows(name, json.loads((out / "report.json").read_text(encoding="utf-8")))
        print("\n".join([HEADER, *lines]), flush=True)


if __name__ == "__main__":
    main()
