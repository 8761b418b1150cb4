"""The processes that train together, seen from one of them. Knows nothing of what is trained."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.nn.parallel import DistributedDataParallel

from app.domain.recipes.qat import Compression
from app.domain.training import WireUse
from workers.training.hooks import COMPRESSIONS, Hook, reduce


class Crew(Protocol):
    """One process and those it trains with. Every method but `wire` and `close` is called by all of them at once.

    Attributes:
        rank: the place of this process, 0 to `size` - 1.
        size: how many train together.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a module whose backward pass leaves the mean of everybody's gradients, the same bits in all processes.

        Whatever its forward pass returns must go into the loss, and its parameters be those of rank 0 from now on.
        """

    def mean(self, values: Sequence[float]) -> list[float]:
        """Return the mean of each value over the processes, the same bits in all of them."""

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - it is the subject
        """Tell whether the flag is up anywhere."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what the compression of all processes remembers, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave."""

    def wire(self) -> WireUse | None:
        """Return what a step's gradients took so far; None without other processes, or before the first step."""

    def close(self) -> None:
        """Leave the others."""


def current(*, compression: Compression = "none") -> Crew:
    """Return the crew of this process, as its environment says: `torchrun` sets it."""
    return Together(compression=compression) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()


class Alone:
    """A process that trains by itself."""

    rank = 0
    size = 1

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        return module

    def mean(self, values: Sequence[float]) -> list[float]:
        return list(values)

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        return flag

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Do nothing: no gradient is compressed."""

    def wire(self) -> WireUse | None:
        return None

    def close(self) -> None:
        """Do nothing: nobody is left."""


def _meet() -> None:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None:
        dist.init_process_group("gloo")
        return
    # One store serves all attempts, and keeps the addresses of processes that are gone: each has keys of its own.
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    own = PrefixStore(f"attempt {attempt}", store)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", store=own, rank=rank, world_size=size)


class Together:
    """One of several processes that `torchrun` started: they train on the CPU, and gloo carries their tensors."""

    def __init__(self, *, compression: Compression) -> None:
        _meet()
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._compression: Compression = compression
        self._hook: Hook = COMPRESSIONS[compression]()

    def wrap(self, module: torch.nn.Module) -> torch.nn.Module:
        # Looking for unused parameters also keeps the buckets as they are made first, and errors are kept by bucket.
        wrapped = DistributedDataParallel(module, find_unused_parameters=True)
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        wrapped.register_comm_hook(self._hook, reduce)
        return wrapped

    def mean(self, values: Sequence[float]) -> list[float]:
        found = self._gathered(torch.tensor(values, dtype=torch.float64))
        mean: list[float] = torch.stack(found).mean(dim=0).tolist()
        return mean

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        return max(self.mean([float(flag)])) > 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            f"{rank}.{name}": part
            for name, mine in sorted(self._hook.state().items())
            for rank, part in enumerate(self._gathered(mine))
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        own = f"{self.rank}."
        self._hook.load({name.removeprefix(own): part for name, part in state.items() if name.startswith(own)})

    def wire(self) -> WireUse | None:
        steps, plain, sent = self._hook.counts
        if steps == 0:
            return None
        return WireUse(hook=self._compression, plain_bytes=round(plain / steps), sent_bytes=round(sent / steps))

    def close(self) -> None:
        dist.destroy_process_group()

    def _gathered(self, mine: torch.Tensor) -> list[torch.Tensor]:
        found = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(found, mine.detach().contiguous())
        return found
