"""Measure speed: python -m benchmarks.bench [peer=<checkout of thuml/iVideoGPT> peer_python=<its python>] [key=value]

Without `peer` ours alone at the sizes of a preset; with it side by side with the official code at the paper's sizes.
The table is printed and written, with all numbers, to runs/bench/<name>/. docs/performance.md explains every line.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks import alone, beside, measure, options
from benchmarks.options import Options
from benchmarks.table import number, write
from mbrl.experiment.command import command
from mbrl.experiment.settings import Settings, pick_device


def main(overrides: list[str]) -> None:
    chosen, settings, of_run = options.read(overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = pick_device(settings.device)
    # First of all: it also notes how busy the machine was before.
    facts = measure.machine(device)
    if chosen.peer == "none":
        folder = Path(chosen.out) / (chosen.name or f"alone-{settings.preset}")
        text, values = measure_alone(chosen, settings, device)
    else:
        folder = Path(chosen.out) / (chosen.name or "beside")
        text, values = beside.measure(chosen, settings, of_run, folder)
    gpu = facts["machine"]["gpu"]
    where = gpu if device.type == "cuda" else f"{facts['cpu']} ({', '.join(facts['flags'])})"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)
    head = (
        f"{where}, {facts['cores']} cores, {facts['threads']} threads, load {facts['load_average_before']:.1f} before"
    )
    text = f"{head}\n{versions}\n\n{text}"
    write(folder, "bench", text, {"machine": facts} | values)
    print(f"\n{text}\n\nwritten to {folder}")


def measure_alone(chosen: Options, settings: Settings, device: torch.device) -> tuple[str, dict[str, Any]]:
    """The table of our own parts, and its numbers."""
    limits = measure.probe(device)
    parts = alone.Parts(settings, device)
    rows = alone.measure_parts(parts, chosen.repeats, chosen.at_least_s, limits)
    shares = alone.loop(settings, rows, parts.env.episode_decisions)
    parts.env.close()
    rates = ", ".join(f"{number(flops / 1e9)} GFLOP/s in {name}" for name, flops in limits.flops.items())
    text = f"{alone.report(settings, rows, shares)}\n\nThis device: {rates}, {number(limits.bytes / 1e9)} GB/s."
    return text, {
        "limits": limits._asdict(),
        "parts": {name: row.as_dict() for name, row in rows.items()},
        "run_s": shares,
    }


if __name__ == "__main__":
    command(main)
