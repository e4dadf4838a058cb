"""Owns the choice among settings: all of them trained in one batch, the worse half stopped early.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943, algorithm 1): every setting gets a short training,
the better half twice as much, and so on, until one goes to its end. A setting's score is the mean of its seeds' best
dev accuracy; the set that is reported chooses nothing. A stopped prompt frees its rows, so that the others go faster.
Knows the order of things; what a run is belongs to `trainer.run`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainer.checkpoints import Checkpoints
from trainer.config import TrainConfig
from trainer.errors import RunFolderError, TrainingFailedError, TrainingInterruptedError, named
from trainer.grid import Setting
from trainer.interrupt import StopRequest, stop_on_signals
from trainer.learner import Learner
from trainer.listeners import Listeners
from trainer.mixture import train_together
from trainer.outcome import Reference
from trainer.progress import TrainingProgress
from trainer.ranks import ALONE, Ranks
from trainer.report import percent, titled, write_sweep
from trainer.run import Run, RunResult, load
from trainer.run_folder import SWEEP, RunFolder, deciding, with_absolute_paths
from trainer.sweep_file import Rung, read_sweep, save_sweep
from trainer.trackers import ExperimentLog

FIGURE = "sweep.png"


def sweep(
    settings: Sequence[Setting], *, console: Console, new: bool = True, ranks: Ranks = ALONE
) -> RunResult:
    """Train all settings by successive halving, and finish the best as a run: its folder is the sweep's.

    Raises TrainerError: bad settings or data, a folder in use, every setting diverged, or TrainingInterruptedError
    (`resume_sweep` goes on).
    """
    folder = Path(settings[0].config.output)
    if new:
        RunFolder(folder).refuse_taken()
    log = ExperimentLog([setting.config for setting in settings], folder)
    work = _Sweep(settings, folder, console, ranks)
    with log, RunFolder(folder).gone_on_with(), stop_on_signals(ranks.signal) as stop:
        work.prepare(stop, new=new)
        for prefix, config in work.prefixes():
            log.about(config, prefix)
        with TrainingProgress(console) as progress:
            for evaluations, keep in halvings(len(settings), work.evaluations)[len(work.rungs) :]:
                compared = False
                while not compared:
                    for _ in train_together(
                        work.backbone,
                        work.until(evaluations),
                        checkpoints=work.checkpoints,
                        listener=Listeners(progress, log),
                        stop=stop,
                        rows_at_once=settings[0].config.rows_at_once,
                        ranks=ranks,
                    ):
                        pass
                    if stop.signal_number is not None:
                        raise TrainingInterruptedError(
                            f"interrupted; the sweep is saved. Go on with: {RunFolder(folder).resume_command()}",
                            signal_number=stop.signal_number,
                        )
                    compared = work.compare(evaluations, keep)
        result = work.finish()
        log.finished(folder, work.best_prefix)
    return result


def resume_sweep(folder: Path, *, console: Console, ranks: Ranks = ALONE) -> RunResult:
    """Go on with a sweep that was interrupted or killed; it ends as it would have ended."""
    settings, _ = read_sweep(folder)
    if (folder / "metrics.json").exists():
        raise RunFolderError(f"{folder}: this sweep is finished; there is nothing to resume")
    return sweep(settings, console=console, new=False, ranks=ranks)


def halvings(settings: int, evaluations: int) -> list[tuple[int, int]]:
    """The comparisons: after how many evaluations, and how many settings go on; the last keeps one.

    Each comes after twice as much training as the one before where there are evaluations enough; where there are not,
    the first come after one evaluation more each, so that never more than the worse half is stopped at once, and what
    is left at the end is compared there.
    """
    rounds = math.ceil(math.log2(settings)) if settings > 1 else 0
    found: list[tuple[int, int]] = []
    for nth in range(rounds):
        at = max(found[-1][0] + 1 if found else 1, evaluations >> (rounds - nth))
        found.append((at, math.ceil(settings / 2 ** (nth + 1))))
    return [*(one for one in found if one[0] < evaluations), (evaluations, 1)]


class _Sweep:
    def __init__(self, settings: Sequence[Setting], folder: Path, console: Console, ranks: Ranks) -> None:
        self._settings, self._folder, self._console = settings, folder, console
        self.backbone = load(settings[0].config, ranks)
        self.checkpoints = Checkpoints(folder / "state")
        self.rungs: list[Rung] = []
        probes: dict[bytes, Reference] = {}
        self._runs: dict[str, Run] = {}
        for at, setting in enumerate(settings, 1):
            with named(f"setting {setting.name}"):
                self._runs[setting.name] = Run(
                    setting.config, self.backbone, console, prefix=f"{at}.", probes=probes, ranks=ranks
                )
        self._first = self._runs[settings[0].name]
        self._alive = [setting.name for setting in settings]
        self._learners: dict[str, list[Learner]] = {}
        self.evaluations = 1

    def prepare(self, stop: StopRequest, *, new: bool) -> None:
        """Make every setting's learners, and take up the comparisons that were made before."""
        self.checkpoints.lock()
        if new:  # of two that start at once, one has the folder
            RunFolder(self._folder).refuse_taken()
        decided = {
            f"{name}: {key}": value
            for name, run in self._runs.items()
            for key, value in (deciding(run.config) | run.source).items()
        }
        if new:  # first of all: whoever is killed behind it finds a sweep to go on with
            self._save()
        try:
            self._first.claim({"the settings": list(self._runs)} | decided)
        except RunFolderError:
            if new:
                (self._folder / SWEEP).unlink(missing_ok=True)
            raise
        if not new:
            _, self.rungs = read_sweep(self._folder)
        for name, run in self._runs.items():
            with named(f"setting {name}"):
                run.prepare(stop)
                self._learners[name] = list(run.learners())
            for learner in self._learners[name]:
                self.checkpoints.restore(learner)
        # Settings with more evaluations than the fewest are compared where the others are: at equal shares.
        self.evaluations = min(len(x.schedule.evaluate_at) for xs in self._learners.values() for x in xs)
        for at, name in enumerate(self._runs, 1):  # bars and lines begin with the number
            self._console.print(f"{at}: {name}", highlight=False, markup=False)
        if self.rungs:
            self._alive = list(self.rungs[-1].kept)

    def prefixes(self) -> list[tuple[str, TrainConfig]]:
        """What the names of each setting's learners begin with, and its settings."""
        return [(f"{at}.", run.config) for at, run in enumerate(self._runs.values(), 1)]

    @property
    def best_prefix(self) -> str:
        """What the names of the best setting's learners begin with."""
        return f"{list(self._runs).index(self._alive[0]) + 1}."

    def until(self, evaluations: int) -> list[Learner]:
        """The learners that are still in it, to rest after this share of their own training, or at its end."""
        learners = [learner for name in self._alive for learner in self._learners[name]]
        for learner in learners:
            at = sorted(learner.schedule.evaluate_at)
            last = evaluations >= self.evaluations
            learner.rest_at = None if last else at[math.ceil(evaluations * len(at) / self.evaluations) - 1]
        return learners

    def compare(self, evaluations: int, keep: int) -> bool:
        """Keep the best settings on dev, of equals the first; a setting with a seed that diverged is out.

        False where all diverged and others, which were stopped before, have to come so far in their place. Raises
        TrainingFailedError where there is none.
        """
        scores = {name: [_best(learner) for learner in self._learners[name]] for name in self._alive}
        fit = [name for name in self._alive if all(math.isfinite(value) for value in scores[name])]
        if not fit:
            self._replace_diverged()
            return False
        means = {name: statistics.fmean(scores[name]) for name in fit}
        ranked = sorted(fit, key=lambda name: -means[name])[:keep]
        equals = [name for name in fit if means[name] == means[ranked[-1]]]
        self._alive = [name for name in self._alive if name in ranked]
        finite = {name: [v if math.isfinite(v) else 0.0 for v in values] for name, values in scores.items()}
        self.rungs.append(Rung(evaluations, finite, self._alive))
        self._save()
        if len(scores) > 1:
            self._say(
                f"after {_share(evaluations, self.evaluations)} of the training: "
                f"{len(self._alive)} of {len(scores)} settings stay"
                + (
                    ""
                    if set(equals) <= set(ranked)
                    else f"; {len(equals)} were equal, and the first of them stay"
                )
            )
        return True

    def _replace_diverged(self) -> None:
        """As many of those that were stopped last as are alive go on instead, the best first."""
        failed = [learner.failure for name in self._alive for learner in self._learners[name]]
        for rung in reversed(self.rungs):
            stopped = [
                name
                for name in rung.scores
                if name not in self._alive and all(x.failure is None for x in self._learners[name])
            ]
            if stopped:
                break
        else:
            raise TrainingFailedError(f"every setting diverged; {next(filter(None, failed))}")
        ranked = sorted(stopped, key=lambda name: -statistics.fmean(rung.scores[name]))[: len(self._alive)]
        self._say(f"{'; '.join(self._alive)}: diverged. Instead: {'; '.join(ranked)}")
        self._alive = [name for name in stopped if name in ranked]
        # A sweep that is killed now finds those that go on, whoever of them diverges, too.
        self.rungs[-1] = replace(self.rungs[-1], kept=self._alive)
        self._save()

    def finish(self) -> RunResult:
        """The table and the picture; then the best setting's own report."""
        (best,) = self._alive
        self._console.print(_table(self._settings, self.rungs, self._folder.name))
        write_sweep(
            self._folder / FIGURE,
            f"{self._settings[0].config.task_id}: successive halving on dev",
            {name: [learner.points for learner in learners] for name, learners in self._learners.items()},
            best,
        )
        made = sum(x.step * x.batch_size for learners in self._learners.values() for x in learners)
        whole = sum(x.schedule.steps * x.batch_size for ls in self._learners.values() for x in ls)
        self._say(
            f"best: {best}; {_share(made, whole)} of the rows that all settings to their ends would have taken"
        )
        run = self._runs[best]
        run.folder.create(with_absolute_paths(run.config))
        run.begin(new=False)
        for learner in self._learners[best]:
            run.take(learner)
        return run.finish()

    def _save(self) -> None:
        settings = [replace(setting, config=self._runs[setting.name].config) for setting in self._settings]
        save_sweep(self._folder, settings, self.rungs)

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _share(part: int, whole: int) -> str:
    """A share for a person."""
    return f"{100 * part / whole:.0f} %"


def _best(learner: Learner) -> float:
    """Its best dev accuracy so far; not a number if it diverged."""
    if learner.failure is not None:
        return math.nan
    return max(point.dev_accuracy for point in learner.points)


def _table(settings: Sequence[Setting], rungs: Sequence[Rung], title: str) -> Table:
    table = titled(f"{title}: best dev accuracy % so far")
    table.add_column("setting")
    for rung in rungs:
        table.add_column(f"after {_share(rung.evaluations, rungs[-1].evaluations)}", justify="right")
    for setting in settings:
        cells = [percent(rung.scores[setting.name]) if setting.name in rung.scores else "–" for rung in rungs]
        table.add_row(Text(setting.name), *cells, style="bold" if setting.name in rungs[-1].kept else None)
    return table
