"""The training loop: steps, looks at the held-out rows, checkpoints, and every reason to end.

What happens at a step follows from the state before it alone, so a training that was killed and goes on from a
checkpoint ends with the same numbers as one that was not.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from app.domain.training import MOST_POINTS, Ended, TrainingPoint, TrainingProgress
from workers.stage_records.training import CHECKPOINT_OUTPUT, STOP_INPUT, TrainingTeller
from workers.training import state
from workers.training.crew import Crew
from workers.training.losses import Objective
from workers.training.material import Batch, Material
from workers.training.memory import Peak
from workers.training.program import Program
from workers.training.schedule import optimizer_of, rate_at, set_rate
from workers.training.state import Journal, State

TELL_SECONDS = 1.0
JUDGED = 10
"""So many losses at the beginning, and the newest, are compared to see whether training diverges."""
DIVERGED = 10.0
"""How many times the loss at the beginning, or the start's score, that is."""
WRITING_STRETCH = 20
"""How many times as long as a checkpoint took to write, the next one waits: writing takes a twentieth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the held-out rows say."""

    score: float
    agreement: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How training ended; the program then has the state of the best step.

    Attributes:
        seconds: of this attempt.
        peak_bytes: the most memory that this process held meanwhile.
    """

    journal: Journal
    steps: int
    seconds: float
    peak_bytes: int
    notes: tuple[str, ...]


class Trainer:
    """Trains one program.

    Args:
        objective: its recipe says all the rest.
        deadline: monotonic time at which to end.
    """

    def __init__(
        self,
        program: Program,
        objective: Objective,
        *,
        training: Material,
        held_out: Material,
        crew: Crew,
        teller: TrainingTeller,
        scratch: Path,
        deadline: float,
    ) -> None:
        self._program, self._objective, self._recipe = program, objective, objective.recipe
        self._training, self._held_out = training, held_out
        self._crew, self._teller, self._scratch, self._deadline = crew, teller, scratch, deadline
        self._module: nn.Module = program
        self._all = program.returns
        self._optimizer: Optimizer = optimizer_of(program, self._recipe)
        self._best: dict[str, Tensor] = {}
        self._unwritten: list[int] = []
        self._notes: tuple[str, ...] = ()
        self._speed, self._spoke_at, self._saved_at, self._began = 0.0, 0.0, 0.0, 0.0
        self._journal = Journal(fingerprint="", start="")
        self._peak = Peak()
        self._writing = 0.0

    @property
    def steps(self) -> int:
        """How many steps the recipe asks for."""
        per_epoch = len(self._training.rows) // self._recipe.batch_size
        return self._recipe.steps or (self._recipe.epochs or 1) * per_epoch

    @property
    def seconds_left(self) -> float:
        """How long training may take from now on."""
        return max(0.0, self._deadline - time.monotonic())

    def look(self) -> Look:
        """Answer the held-out rows."""
        loss, alike, counted, rows = 0.0, 0.0, 0.0, 0.0
        self._program.eval()
        before, self._program.returns = self._program.returns, self._all
        with torch.no_grad():
            for inputs, targets in self._held_out.all(rank=self._crew.rank, size=self._crew.size):
                answers = self._program(inputs)
                size = len(next(iter(inputs.values())))
                loss, rows = loss + float(self._objective.loss(answers, targets)) * size, rows + size
                agreeing = self._objective.agreeing(answers, targets)
                if agreeing is not None:
                    alike, counted = alike + float(agreeing.sum()), counted + agreeing.numel()
        self._program.train()
        self._program.returns = before
        loss, alike, counted, rows = self._crew.mean([loss, alike, counted, rows])
        score = loss / rows if math.isfinite(loss) else math.inf
        return Look(score=score, agreement=alike / counted if counted else None)

    def forget_gradients(self) -> None:
        """Drop what a rehearsal left."""
        self._optimizer.zero_grad(set_to_none=True)

    def part(self, step: int) -> Batch:
        """Return this process' part of a step's batch."""
        return self._training.step(step, rank=self._crew.rank, size=self._crew.size)

    def rehearse(self, batch: Batch) -> Tensor:
        """Run a batch forward and backward, and change nothing that lasts."""
        self._program.eval()
        inputs, targets = batch
        loss = self._objective.loss(self._program(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        self.forget_gradients()
        self._program.train()
        return loss.detach()

    def run(self, journal: Journal, *, resumed: State | None) -> Ending:
        """Train to the end.

        Args:
            journal: of a training that begins, with the look at it in its first point; or the resumed state's.
            resumed: the state to go on from.
        """
        began = time.monotonic()
        self._begin(journal, resumed)
        self._module = self._crew.wrap(self._program)
        self._program.train()
        self._program.returns = self._objective.learned
        while journal.ended is None and journal.step < self.steps:
            found = self._step()
            if found is not None:
                journal.ended, journal.reason = found
        self._journal.seconds += time.monotonic() - self._began
        self._began = time.monotonic()
        self._save()
        self._tell(force=True)
        self._program.load_state_dict(self._best)
        self._program.returns = self._all
        return Ending(
            journal=journal,
            steps=self.steps,
            seconds=time.monotonic() - began,
            peak_bytes=self._peak.most_bytes,
            notes=self._notes,
        )

    def _begin(self, journal: Journal, resumed: State | None) -> None:
        self._journal = journal
        if resumed is None:
            self._best = _copy(self._program.state_dict())
        else:
            journal.resumed_at.append(journal.step)
            self._program.load_state_dict(dict(resumed.module))
            self._best = _copy(resumed.best)
            state.load_optimizer(self._optimizer, resumed.optimizer)
            self._crew.load_state_dict(resumed.crew)
        self._began = self._saved_at = time.monotonic()

    def _step(self) -> tuple[Ended, str] | None:
        """Do one step and all that follows it; return why training ends, if it does."""
        began, journal = time.monotonic(), self._journal
        rate = rate_at(self._recipe, step=journal.step, steps=self.steps)
        self._follow(journal.step)
        loss, stop, late, due = self._crew.mean([self._move(rate), *self._signals()])
        journal.step += 1
        self._count(loss, rate)
        if not math.isfinite(loss) or self._diverges():
            return "diverged", self._diverged(loss, rate)
        if journal.step in self._looks and (ended := self._judge(rate)) is not None:
            return ended
        self._speed = _smooth(self._speed, self._recipe.batch_size / (time.monotonic() - began))
        if due:
            self._save()
        self._tell(force=False)
        if (stop or late) and journal.step not in self._looks:
            self._judge(rate)  # or what was learned since the last look is lost
        if stop:
            return "stopped on request", f"Stopped on request after step {journal.step} of {self.steps}."
        if late:
            return "time limit", f"The time was up after step {journal.step} of {self.steps}."
        return None

    def _move(self, rate: float) -> float:
        """Compute a gradient and follow it; return the loss of this process' part, weighted by its share.

        A gradient that is not finite is not followed, and the loss then counts as none: quantizers would hide what it
        makes of the weights.
        """
        inputs, targets = self.part(self._journal.step)
        share = len(next(iter(inputs.values()))) * self._crew.size / self._recipe.batch_size
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective.loss(self._module(inputs), targets) * share
        self._peak.look()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._program.parameters(), self._recipe.gradient_clip or math.inf)
        self._peak.look()
        set_rate(self._optimizer, rate)
        if not math.isfinite(float(norm)):  # of all processes' gradients, so none of them follows
            return math.nan
        self._optimizer.step()
        return float(loss.detach())

    def _signals(self) -> tuple[float, float, float]:
        """Return whether somebody asks to stop, the time is up, and a checkpoint is due: the first process decides."""
        if self._crew.rank:
            return 0.0, 0.0, 0.0
        now = time.monotonic()
        due = now - self._saved_at >= max(self._recipe.checkpoint_seconds, WRITING_STRETCH * self._writing)
        return float((self._scratch / STOP_INPUT).exists()), float(now > self._deadline), float(due)

    def _follow(self, step: int) -> None:
        """Let observers and statistics stand still from their step on."""
        share = step / self.steps
        recipe = self._recipe
        self._program.freeze(observers=share >= recipe.freeze_observers, batch_norm=share >= recipe.freeze_batch_norm)

    def _count(self, loss: float, rate: float) -> None:
        journal = self._journal
        journal.losses.append(loss)
        if journal.first is None:
            journal.first = loss
        journal.recent = [*journal.recent[1 - JUDGED :], loss]
        if journal.step % max(1, math.ceil(2 * self.steps / MOST_POINTS)) == 0 and journal.step not in self._looks:
            self._point(rate, None)

    def _point(self, rate: float, look: Look | None) -> None:
        points, losses = self._journal.points, [each for each in self._journal.losses if math.isfinite(each)]
        same = points.pop() if points[-1].step == self._journal.step else None  # a last look at a step that has one
        before = same.loss if same is not None else None
        points.append(
            TrainingPoint(
                step=self._journal.step,
                loss=sum(losses) / len(losses) if losses else before,
                learning_rate=rate,
                score=look.score if look is not None and math.isfinite(look.score) else None,
                agreement=look.agreement if look is not None else None,
            )
        )
        self._journal.losses = []

    @cached_property
    def _looks(self) -> frozenset[int]:
        looks = min(self._recipe.looks, self.steps)
        return frozenset(round(number * self.steps / looks) for number in range(1, looks + 1))

    def _judge(self, rate: float) -> tuple[Ended, str] | None:
        look, journal = self.look(), self._journal
        self._point(rate, look)
        if look.score < journal.best_score:
            journal.best_step, journal.best_score, journal.stale = journal.step, look.score, 0
            self._best = _copy(self._program.state_dict())
            return None
        journal.stale += 1
        if self._recipe.patience is not None and journal.stale >= self._recipe.patience:
            return "early stopping", (
                f"Stopped after step {journal.step} of {self.steps}: {journal.stale} looks at the held-out rows "
                f"brought no better score than step {journal.best_step}."
            )
        return None

    def _diverges(self) -> bool:
        journal = self._journal
        if len(journal.recent) < JUDGED or journal.step <= JUDGED:
            return False
        usual = max(journal.first or 0.0, journal.points[0].score or 0.0, self._objective.negligible)
        return sum(journal.recent) / JUDGED > DIVERGED * usual

    def _diverged(self, loss: float, rate: float) -> str:
        how, recent, asked = "or its gradient is not a number", self._journal.recent, self._recipe.learning_rate or rate
        if math.isfinite(loss):
            mean = sum(recent) / len(recent)
            how = f"rose to {mean:.3g}, the mean of {len(recent)} steps, over {DIVERGED:g} times what it was,"
        return (
            f"The loss {how} at step {self._journal.step} of {self.steps}: the best state before it, of step "
            f"{self._journal.best_step}, was taken; a tenth of the rate may help, a learning_rate of {asked / 10:g} "
            f"(it was {rate:.2g} then)."
        )

    def _save(self) -> None:
        """Write a checkpoint; a disk that is full costs the checkpoint, not the training."""
        crew = self._crew.state_dict()  # of all processes, so all of them ask
        now = time.monotonic()
        self._journal.seconds += now - self._began
        self._began = self._saved_at = now
        if self._crew.rank:
            return
        held = State(
            journal=self._journal,
            module=self._program.state_dict(),
            best=self._best,
            optimizer=state.optimizer_state(self._optimizer),
            crew=crew,
        )
        try:
            state.write(held, self._scratch / CHECKPOINT_OUTPUT)
        except OSError as error:
            why = error.strerror or str(error)[:100]
            self._unwritten.append(self._journal.step)
            self._notes = (_unwritten(self._unwritten, why),)
            return
        finally:
            self._saved_at = time.monotonic()
            self._writing = self._saved_at - now
        self._teller.checkpoint(self._journal.step)

    def _tell(self, *, force: bool) -> None:
        now = time.monotonic()
        if self._crew.rank or (not force and now - self._spoke_at < TELL_SECONDS):
            return
        self._spoke_at = now
        journal, last = self._journal, self._journal.points[-1]
        losses = [each for each in journal.losses if math.isfinite(each)]
        scores = [point.score for point in journal.points if point.score is not None]
        left = self.steps - journal.step
        self._teller(journal.step / self.steps, f"training: step {journal.step} of {self.steps}")
        self._teller.tell(
            TrainingProgress(
                step=journal.step,
                steps=self.steps,
                loss=sum(losses) / len(losses) if losses else last.loss,
                score=scores[-1] if scores else None,
                best_score=journal.best_score if math.isfinite(journal.best_score) else None,
                learning_rate=rate_at(self._recipe, step=max(0, journal.step - 1), steps=self.steps),
                rows_per_second=round(self._speed, 1),
                seconds_left=round(left * self._recipe.batch_size / self._speed, 1) if self._speed else 0.0,
            )
        )


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in tensors.items()}


def _unwritten(steps: list[int], why: str) -> str:
    """Say which checkpoints are missing, in one sentence however many there are."""
    if steps[0] == steps[-1]:
        return f"The checkpoint at step {steps[0]} was not written ({why}): the one before it stayed the newest."
    return (
        f"{len(set(steps))} checkpoints, from step {steps[0]} to {steps[-1]}, were not written ({why}): the newest one "
        "beside them is kept."
    )


def _smooth(before: float, now: float) -> float:
    return now if not before else before + 0.1 * (now - before)
