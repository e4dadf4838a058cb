"""Owns the layout of a run folder and who may write to it. Knows no training.

config.toml               everything that is needed to repeat the run
metrics.json  table.txt   curves.png
prompt.safetensors        the best seed on dev: the one to publish
seeds/seed-N.safetensors  every seed's prompt
state/                    what resuming needs; may be deleted once the run is finished
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig, load_config, to_toml
from trainer.errors import RunFolderError
from trainer.state import write_atomically

CONFIG = "config.toml"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def prompt(self) -> Path:
        """The prompt file to publish."""
        return self.root / "prompt.safetensors"

    @property
    def metrics(self) -> Path:
        """metrics.json; it is written last, so its presence says that the run is finished."""
        return self.root / "metrics.json"

    @property
    def table(self) -> Path:
        """The table as text."""
        return self.root / "table.txt"

    @property
    def curves(self) -> Path:
        """Loss and dev score over epochs."""
        return self.root / "curves.png"

    def seed_prompt(self, seed: int) -> Path:
        """One seed's prompt file."""
        return self.root / "seeds" / f"seed-{seed}.safetensors"

    def checkpoint(self, seed: int) -> Path:
        """One seed's training state."""
        return self.root / "state" / f"seed-{seed}.safetensors"

    @property
    def identity(self) -> Path:
        """What the state belongs to: digests of data and backbone."""
        return self.root / "state" / "identity.json"

    def create(self, config: TrainConfig) -> None:
        """Make the folder and write config.toml. Raises RunFolderError when a run is in it already."""
        if (self.root / CONFIG).exists():
            done = self.metrics.exists()
            advice = (
                "choose another --output"
                if done
                else f"go on with it ({self.resume_command()}) or choose another"
            )
            raise RunFolderError(f"{self.root}: there is a run in it already; {advice}")
        try:
            for folder in (self.root, self.root / "seeds", self.root / "state"):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.root / CONFIG, to_toml(config).encode())
        except OSError as error:
            raise RunFolderError(f"{self.root}: {error.strerror}") from None

    def config(self) -> TrainConfig:
        """The configuration that the run was started with; its `output` is this folder, wherever it was
        moved.
        """
        if not (self.root / CONFIG).exists():
            raise RunFolderError(f"{self.root}: no run to resume here ({CONFIG} is missing)")
        return load_config(self.root / CONFIG, {"output": str(self.root)})

    def claim(self, identity: dict[str, str]) -> None:
        """Bind the state to data and backbone, or raise RunFolderError when it was made with others."""
        try:
            known = json.loads(self.identity.read_text())
        except FileNotFoundError:
            write_atomically(self.identity, json.dumps(identity).encode())
            return
        changed = sorted(key for key in identity if known.get(key) != identity[key])
        if changed:
            raise RunFolderError(
                f"{self.root}: {', '.join(changed)} changed since this run began; start a new run"
            )

    def resume_command(self) -> str:
        """What to type to go on."""
        return f"promptmux train --resume {shlex.quote(str(self.root))}"
