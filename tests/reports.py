"""A report with every part filled in, as a search on CIFAR's ResNet-20 gives one: what no run need take minutes for."""

import base64
import math
import random
import struct
import zlib
from datetime import UTC, datetime

from app.domain.evidence import (
    DataUse,
    Diagnosis,
    Finding,
    FlippedImage,
    Histogram,
    Interval,
    Invariance,
    LayerReceipt,
    LayerRun,
    LayerSensitivity,
    MetricScore,
    Receipt,
    Verdict,
)
from app.domain.recipes import Auto, Budget, Cast, PtqDynamic, PtqStatic, Single, WeightOnly
from app.domain.reports import (
    Accuracy,
    ClassAccuracy,
    Difference,
    Environment,
    Fidelity,
    Flips,
    Kernels,
    Latency,
    Layer,
    Memory,
    Proportion,
    Report,
    Size,
)
from app.domain.search import Forecast, Search, Trial
from app.domain.variants import Execution

VARIANT = "auto"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BUDGET = Budget(metric="top1", max_drop=0.005)
_SHA256 = "1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f809"


def full_report(*, layers: int = 22) -> Report:
    """Return a report that lacks nothing.

    Args:
        layers: of the receipt and the sensitivity.
    """
    chance = random.Random(7)
    return Report(
        model="resnet20",
        version=1,
        variant=VARIANT,
        artifact_sha256=_SHA256,
        recipe=_RECIPES[5],
        size=Size(bytes=298_113, float32_bytes=1_092_345, ratio=0.2729),
        calibration=_use("cifar:1", rows=300, seed=0),
        evaluation=_use("cifar-test:1", rows=10_000),
        accuracy=_accuracy(chance),
        fidelity={VARIANT: Fidelity(agreement=_proportion(9812), sqnr_db=24.1, cosine=0.9981, kl=0.0021)},
        latency=_latency(chance),
        memory={
            "float32": Memory(pss_bytes=98_000_000, peak_bytes=131_000_000, added_bytes=5_600_000),
            "bfloat16": Memory(pss_bytes=97_000_000, peak_bytes=130_000_000, added_bytes=4_900_000),
            VARIANT: Memory(pss_bytes=94_000_000, peak_bytes=126_000_000, added_bytes=2_700_000),
        },
        kernels={VARIANT: Kernels(layers=(_layer(),), int8_layers=layers - 1, float_layers=1, int8_share=0.91)},
        conversion=None,
        environment=_ENVIRONMENT,
        notes=("Selection and final score used different rows.",),
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        execution=Execution(),
        metrics=_metrics(),
        verdict=Verdict(
            budget=BUDGET,
            outcome="kept",
            drop=Interval(value=0.0012, low=-0.001, high=0.0034),
            rows=10_000,
            rows_needed=None,
            reason="The drop of top1 is at most 0.34 points on 10,000 rows, within the budget of 0.5.",
        ),
        receipt=_receipt(chance, layers),
        findings=(
            Finding(code="duplicates", severity="note", message="3 evaluation rows appear twice.", rows=(4, 90, 91)),
            Finding(
                code="calibration_in_evaluation",
                severity="warning",
                message="2 calibration rows are inside the evaluation set: take them out.",
                rows=(17, 230),
            ),
        ),
        diagnosis=_DIAGNOSIS,
        invariance=Invariance(invariant=True, largest_difference=0.0, rows=16, batch_size=8),
        histograms=tuple(_histogram(chance, number) for number in range(8)),
        sensitivity=_sensitivity(chance, layers),
        gallery=tuple(_flip(chance, row) for row in range(10)),
        search=_search(chance, layers),
    )


_RECIPES: tuple[Single, ...] = (
    Cast(),
    PtqStatic(),
    PtqStatic(observer="mse"),
    PtqStatic(toolchain="ort", observer="entropy"),
    PtqStatic(toolchain="torchao"),
    PtqStatic(observer="mse", bias_correction="full", float_layers=("/conv1/Conv", "/linear/Gemm")),
    WeightOnly(bits=8),
    PtqDynamic(toolchain="ort"),
    PtqStatic(weight_bits=4, rounding="adaround"),
    PtqStatic(smooth_quant=0.5),
)

_ENVIRONMENT = Environment(
    cpu="Intel Xeon, 2.9 GHz",
    instructions=("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
    cores=2,
    memory_bytes=8_589_934_592,
    kernel="6.1.0",
    libraries={"openvino": "2026.4.1", "nncf": "3.4.0", "onnx": "1.23.2"},
)

_DIAGNOSIS = (
    Diagnosis(
        question="Why did accuracy drop?",
        answer=("It dropped by 0.12 points, most of it in 'cat'.", "Layer '/layer1.0/conv1/Conv' loses most."),
        next=("Keep '/layer1.0/conv1/Conv' in float.", "Learn the rounding with adaround."),
    ),
    Diagnosis(
        question="Why is it not faster?",
        answer=("It is 2.61 times as fast; 9 % of the time goes into conversions.",),
        next=("Measure it on the machine that will serve it.",),
    ),
    Diagnosis(question="Why did it not convert?", answer=("It did: every layer has its int8 kernel.",), next=()),
)


def _use(dataset: str, *, rows: int, seed: int | None = None) -> DataUse:
    return DataUse(dataset=dataset, rows=rows, source="given", seed=seed, sha256=_SHA256)


def _proportion(count: int, rows: int = 10_000) -> Proportion:
    value = count / rows
    half = 1.96 * math.sqrt(value * (1 - value) / rows)
    return Proportion(value=value, low=value - half, high=value + half, count=count, rows=rows)


def _interval(count: int) -> Interval:
    share = _proportion(count)
    return Interval(value=share.value, low=share.low, high=share.high)


def _accuracy(chance: random.Random) -> Accuracy:
    classes = []
    for name in CLASSES:
        before = chance.uniform(0.7, 0.9)
        after = before + chance.choice([-0.012, -0.006, -0.002, 0.0, 0.003, 0.007])
        classes.append(ClassAccuracy(name=name, rows=1000, float32=before, variant=after))
    return Accuracy(
        metric="top1",
        measured={"float32": _proportion(8103), "bfloat16": _proportion(8101), VARIANT: _proportion(8091)},
        difference=Difference(value=-0.0012, low=-0.0034, high=0.001),
        flips=Flips(gained=tuple(range(70)), lost=tuple(range(100, 182)), moved=tuple(range(200, 236))),
        classes=tuple(classes),
    )


def _metrics() -> tuple[MetricScore, ...]:
    def scored(name: str, *values: Interval, drop: Interval, p_value: float | None, method: str) -> MetricScore:
        forms = ("float32", "bfloat16", VARIANT)
        measured = dict(zip(forms, values, strict=True))
        return MetricScore(name=name, rows=10_000, measured=measured, drop=drop, p_value=p_value, method=method)

    newcombe = "Newcombe 1998, method 10; McNemar 1947, exact"
    same = Interval(value=1.0, low=1.0, high=1.0)
    return (
        scored(
            "top1",
            _interval(8103),
            _interval(8101),
            _interval(8091),
            drop=Interval(value=0.0012, low=-0.001, high=0.0034),
            p_value=0.37,
            method=newcombe,
        ),
        scored(
            "top5",
            _interval(9869),
            _interval(9870),
            _interval(9866),
            drop=Interval(value=0.0003, low=-0.0006, high=0.0012),
            p_value=0.61,
            method=newcombe,
        ),
        scored(
            "cosine",
            same,
            Interval(value=0.99996, low=0.99995, high=0.99997),
            Interval(value=0.9981, low=0.998, high=0.9982),
            drop=Interval(value=0.0019, low=0.0018, high=0.002),
            p_value=None,
            method="bootstrap, Efron 1979",
        ),
    )


def _latency(chance: random.Random) -> dict[str, Latency]:
    return {
        "float32": _form_latency(chance, 1.04, 1.0),
        "bfloat16": _form_latency(chance, 0.66, 1.58),
        VARIANT: _form_latency(chance, 0.398, 2.61),
    }


def _form_latency(chance: random.Random, p50: float, speedup: float) -> Latency:
    runs = sorted(p50 * (1 + abs(chance.gauss(0, 0.06)) - 0.03) for _ in range(400))
    quantiles = tuple(runs[min(399, round(share * 399))] for share in (step / 20 for step in range(21)))
    return Latency(
        p50_ms=p50,
        p95_ms=quantiles[19],
        p99_ms=runs[395],
        speedup=speedup,
        runs=400,
        rows_per_second=1900 * speedup,
        batch_size=16,
        quantiles_ms=quantiles,
    )


def _layer() -> Layer:
    return Layer(
        name="conv1", kind="Convolution", precision="u8", implementation="brgconv_avx512_i8", microseconds=21.0
    )


def _layer_name(number: int) -> str:
    return f"/layer{1 + number // 6}/layer{1 + number // 6}.{number % 6 // 2}/conv{1 + number % 2}/Conv"


def _receipt(chance: random.Random, layers: int) -> Receipt:
    lines = []
    for number in range(layers):
        before = chance.uniform(20, 60)
        precision = "bf16" if number == 0 else "f32" if number == layers - 1 else "u8"
        after = before * {"bf16": 0.6, "f32": 1.0, "u8": 0.3}[precision]
        lines.append(
            LayerReceipt(
                name=_layer_name(number),
                kind="Convolution",
                quantized=precision == "u8",
                float32=LayerRun(precision="f32", implementation="brgconv_avx512", microseconds=before),
                variant=LayerRun(precision=precision, implementation="brgconv_avx512_i8", microseconds=after),
            )
        )
    return Receipt(layers=tuple(lines), fallbacks=(), conversion_share=0.09, conversions=("Reorder_17", "Convert_3"))


def _sensitivity(chance: random.Random, layers: int) -> tuple[LayerSensitivity, ...]:
    return tuple(
        LayerSensitivity(
            name=_layer_name(number),
            kind="Convolution",
            sqnr_db=chance.uniform(18, 48),
            drop=chance.uniform(-0.001, 0.004) if number < 12 else None,
            cost_microseconds=chance.uniform(3, 30),
        )
        for number in range(layers)
    )


def _histogram(chance: random.Random, number: int) -> Histogram:
    weight = number % 2 == 0
    low, high = (-1.0, 1.0) if weight else (0.0, 6.0)
    middle, spread = (0.0, 0.22) if weight else (0.6, 1.1)
    before = [0] * 48
    for _ in range(4000):
        bin_ = int((chance.gauss(middle, spread) - low) / (high - low) * 48)
        if 0 <= bin_ < 48:
            before[bin_] += 1
    after = [sum(before[n : n + 3]) if n % 3 == 0 else 0 for n in range(48)]
    return Histogram(
        layer=_layer_name(number // 2),
        kind="weight" if weight else "activation",
        low=low,
        high=high,
        before=tuple(before),
        after=tuple(after),
    )


def _flip(chance: random.Random, row: int) -> FlippedImage:
    label, other, third = chance.sample(CLASSES, 3)
    answers = [(label, other), (other, label), (other, third)][row % 3]
    return FlippedImage(row=37 * row + 4, png=_png(chance), label=label, float32=answers[0], variant=answers[1])


def _png(chance: random.Random, side: int = 16) -> str:
    """Write an RGB picture (PNG specification, third edition, section 5)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    red, green = chance.random(), chance.random()
    lines = b"".join(
        b"\0" + bytes(int(255 * part) for x in range(side) for part in (red * x / side, green * y / side, 0.5))
        for y in range(side)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    whole = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + whole).decode()


def _search(chance: random.Random, layers: int) -> Search:
    speedups = (1.57, 2.55, 2.5, 2.31, 2.42, 2.63, 1.04, 0.41, 2.6, 2.48)
    drops = (0.0002, 0.0061, 0.004, 0.0088, 0.0052, 0.0012, 0.0001, 0.006, 0.031, 0.0047)
    trials = [_trial(number, recipe, speedups[number], drops[number], chance) for number, recipe in enumerate(_RECIPES)]
    failed = Trial(
        key="f" * 16,
        recipe=PtqStatic(channel_equalization=True),
        failure="The toolchain found no pair of layers to equalize.",
        seconds=2.1,
    )
    return Search(
        request=Auto(budget=BUDGET),
        metric="top1",
        selection=_use("cifar:1", rows=4_700, seed=0),
        forecast=Forecast(
            rows=15_000,
            memory_bytes=900_000_000,
            seconds=240.0,
            actual_memory_bytes=760_000_000,
            actual_seconds=201.0,
        ),
        trials=(*trials, failed),
        sensitivity=_sensitivity(chance, layers),
        front=tuple(trials[number].key for number in (0, 2, 5, 6)),
        chosen=trials[5].key,
        reason="Trial 6 is the fastest of those that keep the budget: 2.63 times as fast as float32.",
        ended="complete",
    )


def _trial(number: int, recipe: Single, speedup: float, drop: float, chance: random.Random) -> Trial:
    size = {"cast": 550_000, "weight_only": 330_000}.get(recipe.technique, 298_000 + 5_000 * number)
    return Trial(
        key=f"{number:016x}",
        recipe=recipe,
        artifact_sha256=_SHA256,
        execution=Execution(),
        size_bytes=size,
        latency_ms=1.04 / speedup,
        speedup=speedup,
        memory_bytes=2_700_000 + 100_000 * number,
        score=0.81 - drop,
        drop=Interval(value=drop, low=drop - 0.0022, high=drop + 0.0022),
        noise=0.002,
        seconds=chance.uniform(6, 30),
    )
