"""The three questions are answered from the report's numbers, and from nothing else."""

from dataclasses import replace

from app.domain.diagnosis import diagnose, main_metric
from app.domain.evidence import Finding, Interval, LayerReceipt, LayerRun, LayerSensitivity, MetricScore, Receipt
from app.domain.recipes import PtqStatic, WeightOnly
from app.domain.reports import Report
from tests.trained import trained_report
from tests.unit.test_cli_report import REPORT, latency


def metric(name: str, *, drop: tuple[float, float, float]) -> MetricScore:
    low, value, high = drop
    return MetricScore(
        name=name,
        rows=1000,
        measured={},
        drop=Interval(value=value, low=low, high=high),
        p_value=None,
        method="",
    )


def layer(name: str, *, quantized: bool = True, microseconds: float = 1.0) -> LayerReceipt:
    run = LayerRun(precision="u8", implementation="", microseconds=microseconds)
    return LayerReceipt(name=name, kind="Conv", quantized=quantized, float32=run, variant=run)


def receipt(*layers: LayerReceipt, fallbacks: tuple[str, ...] = (), conversion_share: float = 0.0) -> Receipt:
    return Receipt(layers=layers, fallbacks=fallbacks, conversion_share=conversion_share, conversions=("reorder_1",))


def sensitivity(name: str, sqnr_db: float) -> LayerSensitivity:
    return LayerSensitivity(name=name, kind="Conv", sqnr_db=sqnr_db, drop=None, cost_microseconds=1.0)


def answer(report: Report, question: int) -> str:
    return " ".join(diagnose(report)[question].answer)


def steps(report: Report, question: int) -> str:
    return " ".join(diagnose(report)[question].next)


def test_float32_was_not_quantized_and_is_not_asked() -> None:
    assert diagnose(replace(REPORT, recipe=None)) == ()


def test_the_labels_metric_comes_before_fidelity() -> None:
    metrics = (metric("cosine", drop=(0, 0.1, 0.2)), metric("top1", drop=(0, 0.1, 0.2)))
    found = main_metric(replace(REPORT, metrics=metrics))
    assert found is not None
    assert found.name == "top1"


def test_a_drop_that_the_rows_cannot_tell_from_none_is_no_drop() -> None:
    report = replace(REPORT, metrics=(metric("top1", drop=(-0.01, 0.002, 0.014)),))
    assert answer(report, 0).startswith("It did not, as far as 1000 rows can tell: top1 is 0.2 points worse")


def test_a_real_drop_is_said_with_its_interval() -> None:
    report = replace(REPORT, metrics=(metric("top1", drop=(0.01, 0.02, 0.03)),))
    assert "Top1 is 2 points worse than float32's (interval of the drop 1 to 3), on 1000 rows" in answer(report, 0)


def test_layers_that_stand_out_are_named_with_the_way_to_spare_them() -> None:
    layers = [sensitivity("first", 9.0), *(sensitivity(f"conv{number}", 40.0 + number) for number in range(6))]
    report = replace(REPORT, sensitivity=tuple(layers))
    assert "first (9 dB)" in answer(report, 0)
    assert "Name first" in steps(report, 0)


def test_a_layer_in_float_already_is_not_named_again() -> None:
    layers = tuple(sensitivity(name, 20.0) for name in ("a", "b", "c"))
    report = replace(REPORT, sensitivity=layers, recipe=PtqStatic(float_layers=("a",)))
    assert "Name b, c in float_layers." in steps(report, 0)


def test_wrong_normalisation_is_mended_before_anything_else() -> None:
    finding = Finding(code="normalisation_outside", severity="warning", message="Rows lie outside.")
    report = replace(REPORT, findings=(finding,))
    assert "Rows lie outside." in answer(report, 0)
    assert diagnose(report)[0].next[0].startswith("Mend the preprocessing first")


def test_what_was_only_calibrated_may_be_trained_and_what_was_trained_to_its_end_longer() -> None:
    trained = trained_report()
    assert trained.training is not None
    outcome = trained.training.outcome
    last = replace(outcome, best_step=outcome.steps_done)
    longer = replace(trained, training=replace(trained.training, outcome=last))
    assert "Train it: technique qat" in steps(replace(trained, training=None), 0)
    assert "Train longer" in steps(longer, 0)
    assert "Train it" not in steps(longer, 0)


def test_layers_that_fell_back_to_float_are_named() -> None:
    report = replace(REPORT, receipt=receipt(layer("conv1"), fallbacks=("conv1",)))
    assert "ran 1 quantized layers in float: conv1" in answer(report, 1)
    assert "float_layers" in steps(report, 1)


def test_conversions_that_eat_the_gain_are_named() -> None:
    report = replace(REPORT, receipt=receipt(layer("conv1"), conversion_share=0.4))
    assert "takes 40 % of its time, most of it in reorder_1" in answer(report, 1)


def test_a_faster_bfloat16_is_recommended() -> None:
    slow = replace(REPORT, latency={**REPORT.latency, "int8": latency(0.9)})
    assert "Serve bfloat16" in steps(slow, 1)


def test_weight_only_is_explained_as_storage() -> None:
    assert "computes in float" in answer(replace(REPORT, recipe=WeightOnly()), 1)


def test_layers_that_stayed_in_float_are_named_by_kind() -> None:
    report = replace(REPORT, receipt=receipt(layer("conv1"), layer("odd", quantized=False)))
    assert "1 of 2 layers stayed in float: Conv odd" in answer(report, 2)


def test_a_graph_quantized_throughout_says_so() -> None:
    assert "all 2 layers" in answer(replace(REPORT, receipt=receipt(layer("a"), layer("b"))), 2)
