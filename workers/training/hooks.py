"""How gradients travel between processes: PyTorch's communication hooks, counted, with a memory that can be saved.

A hook is given one bucket of gradients and leaves their mean over the processes in it, the same bits in each.
"""

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import GradBucket, ProcessGroup
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future

from app.domain.recipes.qat import Compression

POWERSGD_RANK = 4
POWERSGD_FROM = 10
"""The step from which gradients are compressed: the first ones are the largest, and its memory is empty."""

_INT8_MOST = 127
_TINY = 1e-30


class Hook(Protocol):
    """A communication hook.

    Attributes:
        counts: steps, bytes of their gradients as they are, bytes handed to the collective.
    """

    counts: tuple[int, int, int]

    def __call__(self, bucket: GradBucket) -> Future[torch.Tensor]: ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return what it remembers from step to step: the same names and shapes in all processes."""

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from such a state."""


def reduce(hook: Hook, bucket: GradBucket) -> Future[torch.Tensor]:
    """Be the function that `register_comm_hook` wants."""
    return hook(bucket)


class _Counted:
    """Remembers nothing but its counts."""

    def __init__(self) -> None:
        self.counts = (0, 0, 0)

    def state(self) -> dict[str, torch.Tensor]:
        return {"counts": torch.tensor(self.counts)}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        steps, plain, sent = state["counts"].tolist()
        self.counts = (steps, plain, sent)

    def _count(self, bucket: GradBucket, sent_bytes: int) -> None:
        steps, plain, sent = self.counts
        self.counts = (steps + bucket.is_last(), plain + bucket.buffer().nbytes, sent + sent_bytes)


class Plain(_Counted):
    """Gradients as they are."""

    def __call__(self, bucket: GradBucket) -> Future[torch.Tensor]:
        self._count(bucket, bucket.buffer().nbytes)
        return default_hooks.allreduce_hook(_everybody(), bucket)


class Half(_Counted):
    """Gradients in 16 bits; one beyond 65,504 becomes infinite."""

    def __call__(self, bucket: GradBucket) -> Future[torch.Tensor]:
        self._count(bucket, bucket.buffer().numel() * torch.float16.itemsize)
        return default_hooks.fp16_compress_hook(_everybody(), bucket)


class Int8(_Counted):
    """Gradients in 8 bits, symmetric, one scale a parameter.

    What rounding loses is added to the next step's gradients: error feedback (Seide et al. 2014).
    """

    def __init__(self) -> None:
        super().__init__()
        self._errors: dict[int, torch.Tensor] = {}

    def __call__(self, bucket: GradBucket) -> Future[torch.Tensor]:
        flat = bucket.buffer()
        if (error := self._errors.get(bucket.index())) is not None:
            flat.add_(error)
        lengths = [part.numel() for part in bucket.gradients()]
        packed = _packed(flat, lengths)
        self._errors[bucket.index()] = flat - _unpacked(packed, lengths)
        self._count(bucket, packed.nbytes)
        parts = [torch.empty_like(packed) for _ in range(dist.get_world_size())]

        def mean(done: Future[list[torch.Tensor]]) -> torch.Tensor:
            done.value()  # raises what went wrong
            # Everybody adds the same numbers in the same order: the same bits.
            return flat.copy_(torch.stack([_unpacked(part, lengths) for part in parts]).mean(dim=0))

        gathered = dist.all_gather(parts, packed, async_op=True)
        assert gathered is not None  # noqa: S101 - for the type checker
        future: Future[list[torch.Tensor]] = gathered.get_future()
        return future.then(mean)

    def state(self) -> dict[str, torch.Tensor]:
        return {**super().state(), **{f"error.{index}": error for index, error in self._errors.items()}}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        super().load(state)
        self._errors = _by_bucket(state, "error.")


def _packed(flat: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Return the scales' bytes and the integers behind them, as one int8 tensor."""
    extremes = torch.stack([part.abs().amax() for part in torch.split(flat, lengths)])
    scales = (extremes / _INT8_MOST).clamp(min=_TINY)
    integers = (flat / _spread(scales, lengths)).round().clamp(-_INT8_MOST, _INT8_MOST).to(torch.int8)
    return torch.cat([scales.view(torch.int8), integers])


def _unpacked(packed: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    head = len(lengths) * torch.float32.itemsize
    scales = packed[:head].view(torch.float32)
    return packed[head:].to(torch.float32) * _spread(scales, lengths)


def _spread(scales: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(scales, torch.tensor(lengths))


class PowerSgd(_Counted):
    """Matrices of low rank in place of gradients (Vogels et al. 2019, arXiv:1905.13727), by PyTorch's own hook."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = PowerSGDState(
            _everybody(),
            matrix_approximation_rank=POWERSGD_RANK,
            start_powerSGD_iter=POWERSGD_FROM,
            orthogonalization_epsilon=1e-8,  # a parameter may have no gradient at all
        )

    def __call__(self, bucket: GradBucket) -> Future[torch.Tensor]:
        inner = self._inner
        compresses, before = inner.iter >= POWERSGD_FROM, inner.total_numel_after_compression
        done = powerSGD_hook(inner, cast(GradBucket, _WithoutScalars(bucket)))
        # It asks for further collectives when the first is done: gloo has no order among those of several buckets.
        done.wait()
        numbers = inner.total_numel_after_compression - before if compresses else bucket.buffer().numel()
        self._count(bucket, numbers * bucket.buffer().element_size())
        return done

    def state(self) -> dict[str, torch.Tensor]:
        inner = self._inner
        kept = {"error.": inner.error_dict, "p.": inner.p_memory_dict, "q.": inner.q_memory_dict}
        tensors = {f"{name}{index}": part for name, parts in kept.items() for index, part in parts.items()}
        return {**super().state(), **tensors, "steps": torch.tensor([inner.iter])}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        super().load(state)
        inner = self._inner
        inner.iter = int(state["steps"].item())
        inner.error_dict = _by_bucket(state, "error.")
        inner.p_memory_dict, inner.q_memory_dict = _by_bucket(state, "p."), _by_bucket(state, "q.")


class _WithoutScalars:
    """A bucket in which a single number is a vector of one: PowerSGD knows no other."""

    def __init__(self, bucket: GradBucket) -> None:
        self.buffer, self.index, self.is_last = bucket.buffer, bucket.index, bucket.is_last
        self._gradients = bucket.gradients

    def gradients(self) -> list[torch.Tensor]:
        return [part if part.ndim else part.view(1) for part in self._gradients()]


def _everybody() -> ProcessGroup:
    group = dist.group.WORLD
    assert group is not None  # noqa: S101 - a crew makes its hook after it has met
    return group


def _by_bucket(state: Mapping[str, torch.Tensor], name: str) -> dict[int, torch.Tensor]:
    return {int(key.removeprefix(name)): part.clone() for key, part in state.items() if key.startswith(name)}


COMPRESSIONS: dict[Compression, Callable[[], Hook]] = {
    "none": Plain,
    "fp16": Half,
    "powersgd": PowerSgd,
    "int8": Int8,
}
"""What a recipe's `compression` makes of the gradients."""
