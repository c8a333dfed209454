"""What has been sampled already: a file of JSON lines beside the samples, the first what was asked for, then one for each batch done.

A line is written after the samples it speaks of are on disk, whole and at once, so that several processes of a machine may append to
one file; a line that a crash cut short counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Batch:
    """One batch done: its number, the fewest and most evaluations of a sample, how many failed, and how, in words."""

    batch: int
    fewest: int
    most: int
    failed: int = 0
    report: str = ""


class Journal:
    """The journal of one output. Args: path: the file. asked: what decides the samples, JSON-able."""

    def __init__(self, path: Path, asked: Mapping[str, Any]):
        self.path, self.asked = path, json.loads(json.dumps(asked))

    def begin(self) -> None:
        """A new one, in place of any there was."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"asked": self.asked}) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def check(self) -> None:
        """Refuse a journal of other samples.

        Raises ``FileNotFoundError``, or ``ValueError`` with the differences.
        """
        if not self.path.is_file():
            raise FileNotFoundError(
                f"--resume: {self.path} is not there to say what was done; start anew by --overwrite"
            )
        found = self._lines()
        theirs = found[0].get("asked") if found else None
        if not isinstance(theirs, dict):
            raise ValueError(f"--resume: {self.path} is no journal of samples; start anew by --overwrite")
        keys = sorted(theirs.keys() | self.asked.keys())
        differences = [
            f"{k} was {theirs.get(k)!r}, now {self.asked.get(k)!r}" for k in keys if theirs.get(k) != self.asked.get(k)
        ]
        if differences:
            raise ValueError(
                f"--resume: other samples were begun there: {'; '.join(differences)}; start anew by --overwrite"
            )

    def done(self) -> dict[int, Batch]:
        """The batches done, by number."""
        batches = [Batch(**line) for line in self._lines()[1:] if "batch" in line]
        return {batch.batch: batch for batch in batches}

    def add(self, batch: Batch) -> None:
        """Note a batch whose samples are on disk."""
        self._append(json.dumps(asdict(batch)) + "\n")

    def mend(self) -> None:
        """End a line that a crash cut short, so that it does not swallow the next."""
        if not self.path.read_bytes().endswith(b"\n"):
            self._append("\n")

    def _append(self, text: str) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, text.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def _lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(value, dict):
                found.append(value)
        return found
