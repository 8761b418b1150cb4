"""The `train` stage: the best start, trained, written back and compared with what the engine makes of it."""

import hashlib
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from pydantic_core import to_json
from torch import Tensor

from app import __version__
from app.domain.errors import DatasetUnfit, ToolchainFailed
from app.domain.recipes import Qat
from app.domain.teaching import check_batched
from app.domain.training import MOST_RESUMED, StartScore, TrainingForecast, TrainingOutcome, TrainingPoint
from app.domain.variants import Execution
from workers.openvino_engine import OpenVinoSession
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.training import CHECKPOINT_OUTPUT, TrainingTeller, TrainResult, TrainSpec
from workers.toolchains.finish import finish
from workers.toolchains.graph import load_graph
from workers.toolchains.libraries import versions
from workers.toolchains.octet.rounding.threads import cores
from workers.toolchains.prepare import prepare
from workers.training import forecast, state
from workers.training.batch_norms import norms_of
from workers.training.checking import CHECKED_ROWS, alike, answers, check_numbers, engine_answer
from workers.training.crew import Crew, current
from workers.training.loop import Ending, Look, Trainer
from workers.training.material import Material, material_of
from workers.training.rows import load
from workers.training.soundness import check_sound
from workers.training.starting import Begun, begin, last_read, notes_of
from workers.training.state import Journal, State
from workers.training.teacher import Answers, Teacher, renaming, threads_of
from workers.training.unrounded import unrounded

LIBRARIES = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")


def train(spec: TrainSpec, scratch: Path, progress: TrainingTeller) -> TrainResult:
    """Train, and write `out/variant.onnx`.

    With several processes all of them run this, and the first alone writes.

    Raises:
        ToolchainFailed: torch cannot train the graph.
        DatasetUnfit: rows or a teacher that cannot be used.
        DoesNotFit: it needs more time or memory than there is.
    """
    crew = current(compression=spec.recipe.compression)
    try:
        return _Training(spec, scratch, progress, crew).run()
    finally:
        crew.close()


class _Training:
    """One process' part in one attempt."""

    def __init__(self, spec: TrainSpec, scratch: Path, progress: TrainingTeller, crew: Crew) -> None:
        self._spec, self._scratch, self._progress, self._crew = spec, scratch, progress, crew
        self._recipe: Qat = spec.recipe
        self._threads = threads_of(crew.size)
        self._folder = scratch / f"rows-{crew.rank}"
        self._deadline = time.monotonic() + spec.seconds - _seconds_gone(spec)
        self._unused: tuple[str, ...] = ()
        torch.set_num_threads(self._threads)
        torch.use_deterministic_algorithms(mode=True)
        torch.manual_seed(self._recipe.seed)
        uploaded = load_graph(scratch / spec.float32)
        self._norms = norms_of(uploaded) if self._recipe.freeze_batch_norm else {}
        self._float32 = prepare(uploaded, self._recipe.starts[0])  # as it was for the starts

    def run(self) -> TrainResult:
        spec = self._spec
        check_batched(spec.signature)
        self._progress(0.0, "training: reading the rows")
        training, held_out = self._materials()
        resumed = self._resumed()
        begun, looks = self._best_start(training, held_out, only=resumed.journal if resumed else None)
        trainer = self._trainer(begun, training, held_out)
        look, look_seconds = looks[begun.place]
        if resumed is None:
            check_sound(training, held_out, look.score, values=spec.values, crew=self._crew)
        memory = forecast.check_memory(trainer, begun.program, training, spec, size=self._crew.size)
        done = resumed.journal.step if resumed else 0
        seconds = forecast.check_time(trainer, spec, done=done, look_seconds=look_seconds)
        ending = trainer.run(resumed.journal if resumed else self._journal(begun, looks), resumed=resumed)
        checked, same = self._finish(begun, held_out)
        outcome = self._outcome(begun, ending, checked=checked, same=same)
        expected = TrainingForecast(
            seconds=round(seconds, 1),
            memory_bytes=memory,
            actual_seconds=round(ending.seconds, 1),
            actual_memory_bytes=ending.peak_bytes * self._crew.size,
        )
        return TrainResult(
            artifact=VARIANT_OUTPUT,
            start=begun.place,
            outcome=replace(outcome, forecast=expected, wire=self._crew.wire()),
            libraries=versions(LIBRARIES),
            notes=(*self._unused, *notes_of(begun), *ending.notes),
        )

    def _materials(self) -> tuple[Material, Material]:
        spec, recipe = self._spec, self._recipe
        teacher = self._teacher() if recipe.distils else None
        made = []
        for name, source in (("training", spec.training), ("held_out", spec.held_out)):
            rows = load(source, spec.signature, scratch=self._scratch, folder=self._folder / name)
            answers = Answers(teacher, rows, folder=self._folder / f"{name}-answers") if teacher else None
            made.append(
                material_of(rows, recipe, spec.signature, teacher=teacher, answers=answers, trains=name == "training")
            )
        if len(made[0].rows) < recipe.batch_size:
            raise DatasetUnfit(
                f"A batch of {recipe.batch_size} rows was asked for, and {len(made[0].rows)} rows train: take a "
                "smaller batch_size, or send more rows."
            )
        return made[0], made[1]

    def _teacher(self) -> Teacher:
        other, signature = self._spec.teacher, self._spec.signature
        feature = last_read(self._float32) if self._recipe.loss == "feature_distillation" else None
        if other is None:
            return Teacher(_copied(self._float32), renamed={}, feature=feature, threads=self._threads)
        renamed = renaming(other.signature, signature, teacher=other.name)
        return Teacher(load_graph(self._scratch / other.artifact), renamed=renamed, threads=self._threads)

    def _best_start(
        self, training: Material, held_out: Material, *, only: Journal | None
    ) -> tuple[Begun, dict[int, tuple[Look, float]]]:
        """Return the start with the lowest score, and every start's look with the seconds it took.

        Args:
            only: of an earlier attempt, whose start is taken.
        """
        looks: dict[int, tuple[Look, float]] = {}
        best: Begun | None = None
        for place in range(len(self._spec.starts)):
            self._progress(0.0, f"training: looking at start {place + 1} of {len(self._spec.starts)}")
            begun = self._begin(place)
            if only is not None and begun.sha256 != only.start:
                continue
            rows, _ = training.first(CHECKED_ROWS)
            check_numbers(begun.program, rows)
            if only is None:
                begun = replace(begun, unrounded=self._unrounded(begun, rows))
            else:
                begun = replace(begun, unrounded=frozenset(only.unrounded))
            begun.program.only_cut(begun.unrounded)
            began = time.monotonic()
            looks[place] = (self._trainer(begun, training, held_out).look(), time.monotonic() - began)
            if best is None or looks[place][0].score < looks[best.place][0].score:
                best = begun
        if best is None:
            raise ToolchainFailed("The state to go on from belongs to another start: run the job again.")
        return best, looks

    def _begin(self, place: int) -> Begun:
        path = self._scratch / self._spec.starts[place].artifact
        return begin(path, self._float32, self._recipe, place=place, norms=self._norms, values=self._spec.values)

    def _unrounded(self, begun: Begun, rows: Mapping[str, Tensor]) -> frozenset[str]:
        """Ask the engine which quantizers of a start it does not round at."""
        session, name = self._session(self._spec.starts[begun.place].artifact), begun.program.outputs[0]
        theirs = engine_answer(session, rows, name)

        def answer(candidate: frozenset[str]) -> NDArray[np.float32]:
            begun.program.only_cut(candidate)
            return answers(begun.program, rows)[name].numpy()

        return unrounded(begun.program.wiring, answer, theirs)

    def _session(self, artifact: str) -> OpenVinoSession:
        execution = Execution(float_precision=self._recipe.float_precision)
        return OpenVinoSession((self._scratch / artifact).read_bytes(), execution, self._spec.signature, cores())

    def _trainer(self, begun: Begun, training: Material, held_out: Material) -> Trainer:
        return Trainer(
            begun.program,
            begun.objective,
            training=training,
            held_out=held_out,
            crew=self._crew,
            teller=self._progress,
            scratch=self._scratch,
            deadline=self._deadline,
        )

    def _resumed(self) -> State | None:
        """Return the state that processes of this attempt left, or else the one of an earlier attempt.

        One that was brought and is of no use is told of: in the log, and in a note.
        """
        for path in (CHECKPOINT_OUTPUT, self._spec.checkpoint):
            found = state.read(self._scratch / path) if path is not None and (self._scratch / path).exists() else None
            if found is not None and found.journal.fingerprint == self._fingerprint:
                return found
            if path is not None and path == self._spec.checkpoint:
                why = "it cannot be read" if found is None else "it is of another recipe, other rows or another release"
                self._unused = (f"Training began anew and not from the stored checkpoint: {why}.",)
                if not self._crew.rank:
                    sys.stdout.write(f"{self._unused[0]}\n")
        return None

    @cached_property
    def _fingerprint(self) -> str:
        """Return a hash of all that the result depends on but the start and the machine: also what computes it."""
        spec = self._spec
        recipe = replace(self._recipe, checkpoint_seconds=30.0)
        told = [__version__, torch.__version__, asdict(recipe), spec.training.rows, spec.held_out.rows, spec.values]
        digest = hashlib.sha256(to_json(told))
        paths = [
            spec.float32,
            spec.training.path,
            spec.held_out.path,
            *([spec.teacher.artifact] if spec.teacher else []),
        ]
        for path in paths:
            with (self._scratch / path).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def _journal(self, begun: Begun, looks: dict[int, tuple[Look, float]]) -> Journal:
        first = looks[begun.place][0]
        return Journal(
            fingerprint=self._fingerprint,
            start=begun.sha256,
            unrounded=sorted(begun.unrounded),
            starts=[
                StartScore(recipe=self._spec.starts[place].recipe, score=look.score, agreement=look.agreement)
                for place, (look, _) in looks.items()
                if math.isfinite(look.score)
            ],
            points=[TrainingPoint(step=0, loss=None, learning_rate=0.0, score=first.score, agreement=first.agreement)],
            best_score=first.score,
        )

    def _finish(self, begun: Begun, held_out: Material) -> tuple[int, int]:
        """Write the variant; return how many held-out rows it and the module answered, and how many alike."""
        if self._crew.rank:
            return 0, 0
        self._progress(1.0, "training: writing the artifact")
        finish(begun.program.write(), self._spec.signature, path=self._scratch / VARIANT_OUTPUT)
        session, name = self._session(VARIANT_OUTPUT), begun.program.outputs[0]
        checked = same = 0
        for inputs, _ in held_out.all(rank=0, size=1):
            mine = answers(begun.program, inputs)[name]
            theirs = torch.from_numpy(engine_answer(session, inputs, name))
            checked, same = checked + len(mine), same + alike(mine, theirs, values=self._spec.values)
        return checked, same

    def _outcome(self, begun: Begun, ending: Ending, *, checked: int, same: int) -> TrainingOutcome:
        journal = ending.journal
        return TrainingOutcome(
            start=self._spec.starts[begun.place].recipe,
            starts=tuple(journal.starts),
            teacher=_teacher_name(self._spec),
            parameters=sum(each.numel() for each in begun.program.parameters()),
            points=tuple(journal.points),
            steps=ending.steps,
            steps_done=journal.step,
            best_step=journal.best_step,
            ended=journal.ended or "complete",
            reason=journal.reason,
            seconds=round(journal.seconds, 1),
            rows_per_second=round(journal.step * self._recipe.batch_size / max(journal.seconds, 1e-9), 1),
            processes=self._crew.size,
            resumed_at=tuple(journal.resumed_at[-MOST_RESUMED:]),
            checked_rows=checked,
            checked_same=same,
        )


def _seconds_gone(spec: TrainSpec) -> float:
    """Return how much of its seconds others have used up: who is started again, or later, has what is left."""
    return max(0.0, time.time() - spec.began_at) if spec.began_at else 0.0


def _teacher_name(spec: TrainSpec) -> str | None:
    if not spec.recipe.distils:
        return None
    return spec.teacher.name if spec.teacher is not None else "float32"


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
