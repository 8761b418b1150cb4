"""What training makes smaller, against formulas written out."""

import math

import numpy as np
import pytest
import torch

from app.domain.errors import ToolchainFailed
from app.domain.recipes import Qat
from workers.training.losses import IGNORED, Objective, Targets

GENERATOR = torch.Generator().manual_seed(0)
STUDENT, TEACHER = (torch.randn(6, 5, generator=GENERATOR) for _ in range(2))
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def softened(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(each / temperature) for each in logits]
    return [each / sum(powers) for each in powers]


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """Return Hinton's loss: the mean over rows of KL(teacher || student), times the temperature squared."""
    total = 0.0
    for mine, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = softened(mine, temperature), softened(theirs, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(q, p, strict=True))
    return total / len(student) * temperature**2


def loss(recipe: Qat, answers: dict[str, torch.Tensor], targets: Targets) -> float:
    feature = ("f", "g") if recipe.loss == "feature_distillation" else None
    outputs = [name for name in answers if name != "f"]
    return float(Objective(recipe=recipe, outputs=outputs, feature=feature).loss(answers, targets))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_divergence_of_softened_classes(temperature: float) -> None:
    found = loss(Qat(temperature=temperature), {"y": STUDENT}, Targets(teacher={"y": TEACHER}, labels=None))
    assert found == pytest.approx(divergence(STUDENT, TEACHER, temperature), rel=1e-5)


def test_distillation_is_0_for_the_teacher_itself() -> None:
    assert loss(Qat(), {"y": TEACHER}, Targets(teacher={"y": TEACHER}, labels=None)) == pytest.approx(0, abs=1e-6)


def test_the_gradient_keeps_its_size_at_any_temperature() -> None:
    """At a high temperature it is that of the squared error of centred logits (Hinton, section 2.1)."""
    student = STUDENT.clone().requires_grad_()
    objective = Objective(recipe=Qat(temperature=100), outputs=["y"])
    torch.autograd.backward(objective.loss({"y": student}, Targets(teacher={"y": TEACHER}, labels=None)))
    centred = (STUDENT - STUDENT.mean(1, keepdim=True)) - (TEACHER - TEACHER.mean(1, keepdim=True))
    assert student.grad is not None
    np.testing.assert_allclose(student.grad, centred / 5 / 6, atol=2e-3)


def test_an_output_that_is_no_classes_adds_its_squared_error() -> None:
    boxes, wanted = torch.ones(6, 4, 2), torch.full((6, 4, 2), 2.0)
    given = Targets(teacher={"y": TEACHER, "boxes": wanted}, labels=None)
    found = loss(Qat(), {"y": STUDENT, "boxes": boxes}, given)
    assert found == pytest.approx(divergence(STUDENT, TEACHER, 4) + 1 / 4, rel=1e-5)


def test_several_outputs_of_classes_are_all_distilled() -> None:
    given = Targets(teacher={"a": TEACHER, "b": STUDENT}, labels=None)
    found = loss(Qat(), {"a": STUDENT, "b": TEACHER}, given)
    assert found == pytest.approx(divergence(STUDENT, TEACHER, 4) + divergence(TEACHER, STUDENT, 4), rel=1e-5)


def test_an_output_of_integers_is_not_distilled() -> None:
    given = Targets(teacher={"y": TEACHER, "best": TEACHER.argmax(1)}, labels=None)
    found = loss(Qat(), {"y": STUDENT, "best": STUDENT.argmax(1)}, given)
    assert found == pytest.approx(divergence(STUDENT, TEACHER, 4), rel=1e-5)


def test_integers_alone_cannot_be_distilled() -> None:
    with pytest.raises(ToolchainFailed, match="no output of real numbers"):
        loss(Qat(), {"best": STUDENT.argmax(1)}, Targets(teacher={"best": TEACHER.argmax(1)}, labels=None))


@pytest.mark.parametrize(
    "name", ["distillation", "feature_distillation", "cross_entropy", "cross_entropy of maps", "mse"]
)
def test_parts_of_a_batch_average_to_the_whole(name: str) -> None:
    """What processes share is then the batch of one."""
    maps = name.endswith("maps")
    answers = torch.randn(6, 5, 3, 3, generator=GENERATOR) if maps else STUDENT
    labels = torch.randint(0, 5, (6, 3, 3), generator=GENERATOR) if maps else LABELS
    if maps:
        labels[0], labels[1:3, 1] = IGNORED, IGNORED
    wanted = TEACHER * torch.arange(1, 7)[:, None]  # rows of very different energies
    objective = Qat(loss=name.removesuffix(" of maps"))  # type: ignore[arg-type] # one of them

    def part(places: slice) -> float:
        given = Targets(
            teacher={"y": wanted[places], "g": wanted[places]},
            labels=(wanted if name == "mse" else labels)[places],
        )
        return loss(objective, {"y": answers[places], **({} if maps else {"f": STUDENT[places]})}, given)

    assert (part(slice(0, 6, 2)) + part(slice(1, 6, 2))) / 2 == pytest.approx(part(slice(0, 6)), rel=1e-5)


def test_values_in_two_axes_are_no_classes() -> None:
    objective = Objective(recipe=Qat(), outputs=["y"], values=True)
    given = Targets(teacher={"y": torch.full((2, 3), 2.0)}, labels=None)
    answers = {"y": torch.full((2, 3), 3.0)}
    assert float(objective.loss(answers, given)) == pytest.approx(1 / 4)
    assert objective.agreeing(answers, given) is None


def test_a_row_whose_answer_is_about_0_does_not_decide_alone() -> None:
    objective = Objective(recipe=Qat(), outputs=["y"], values=True)
    given = Targets(teacher={"y": torch.tensor([[2.0], [0.0]])}, labels=None, typical={"y": 2.0})
    assert float(objective.loss({"y": torch.tensor([[2.0], [0.5]])}, given)) == pytest.approx(0.25 / 2 / 2)


def test_feature_distillation_is_a_share_of_every_row_s_energy() -> None:
    theirs = torch.tensor([[1.0, 2.0], [0.0, -2.0]])
    given = Targets(teacher={"g": theirs}, labels=None)
    found = loss(Qat(loss="feature_distillation"), {"y": STUDENT, "f": theirs + 0.5}, given)
    assert found == pytest.approx((0.25 / 2.5 + 0.25 / 2) / 2)


def test_cross_entropy_is_that_of_the_labels() -> None:
    expected = -sum(
        math.log(softened(logits, 1)[label]) for logits, label in zip(STUDENT.tolist(), LABELS.tolist(), strict=True)
    )
    found = loss(Qat(loss="cross_entropy"), {"y": STUDENT}, Targets(teacher={}, labels=LABELS))
    assert found == pytest.approx(expected / 6, rel=1e-5)


def test_a_place_without_a_label_counts_for_nothing() -> None:
    maps = torch.randn(2, 5, 3, 3, generator=GENERATOR)
    labels = torch.full((2, 3, 3), IGNORED)
    labels[0, 1, 2] = 4
    found = loss(Qat(loss="cross_entropy"), {"y": maps}, Targets(teacher={}, labels=labels))
    assert found == pytest.approx(-math.log(softened(maps[0, :, 1, 2].tolist(), 1)[4]) / labels.numel(), rel=1e-5)


def test_a_batch_without_any_label_teaches_nothing() -> None:
    labels = torch.full((2, 3, 3), IGNORED)
    assert loss(Qat(loss="cross_entropy"), {"y": torch.ones(2, 5, 3, 3)}, Targets(teacher={}, labels=labels)) == 0


def test_mse_takes_values_in_the_output_s_shape() -> None:
    values = torch.tensor([1.0, 3.0])
    found = loss(Qat(loss="mse"), {"y": torch.tensor([[2.0], [5.0]])}, Targets(teacher={}, labels=values))
    assert found == pytest.approx((1 + 4) / 2)


def agreeing(recipe: Qat, answers: torch.Tensor, targets: Targets) -> list[bool] | None:
    found = Objective(recipe=recipe, outputs=["y"]).agreeing({"y": answers}, targets)
    return None if found is None else [bool(each) for each in found]


def test_agreement_is_with_the_teacher_s_best_class() -> None:
    answers = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert agreeing(Qat(), answers, Targets(teacher={"y": answers.flip(0)}, labels=None)) == [False, False]
    assert agreeing(Qat(), answers, Targets(teacher={"y": answers * 3}, labels=None)) == [True, True]


def test_agreement_is_with_the_labels_where_they_teach() -> None:
    answers = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    labels = Targets(teacher={}, labels=torch.tensor([1, 1]))
    assert agreeing(Qat(loss="cross_entropy"), answers, labels) == [True, False]


def test_answers_that_are_no_classes_of_rows_have_no_agreement() -> None:
    values = torch.ones(4, 1)
    assert agreeing(Qat(), values, Targets(teacher={"y": values}, labels=None)) is None
