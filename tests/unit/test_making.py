"""What is believed of a process that may have run hostile code."""

import pytest

from app.domain.errors import ToolchainFailed
from app.domain.recipes import PtqStatic
from app.domain.variants import Execution
from workers.jobs.transforming import checked
from workers.stage_records.common import VARIANT_OUTPUT
from workers.stage_records.making import TransformResult

RECIPE = PtqStatic(toolchain="torchao", float_precision="bfloat16")


def claimed(execution: Execution, *, notes: tuple[str, ...] = ()) -> TransformResult:
    return TransformResult(artifact=VARIANT_OUTPUT, execution=execution, libraries={"torch": "2"}, notes=notes)


def test_what_the_recipe_says_is_believed() -> None:
    honest = claimed(Execution(float_precision="bfloat16"), notes=("The recurrent layers stay in float.",))
    assert checked(honest, RECIPE) == honest


@pytest.mark.parametrize(
    "execution",
    [Execution(), Execution(float_precision="bfloat16", dynamic_group_size=10**30)],
)
def test_an_artifact_that_is_to_run_otherwise_than_the_recipe_says_is_refused(execution: Execution) -> None:
    with pytest.raises(ToolchainFailed, match="otherwise than the recipe"):
        checked(claimed(execution), RECIPE)


def test_notes_without_end_are_cut() -> None:
    result = checked(claimed(Execution(float_precision="bfloat16"), notes=("kept",) * 10_000), RECIPE)
    assert len(result.notes) == 50
