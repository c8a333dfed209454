"""The processes that train one model together.

Each computes some of the pieces of every batch; then the gradients, and the loss beside them, are added up in one message and every
process takes the same step. The network is not wrapped: names in its state dict stay, objectives may differentiate it as often as they
like, and what is added does not depend on who computed it but for the order of summation. The price is that the message is sent after
the backward pass and not during it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

# those of accelerate that replace the model or the optimizer by their own
_FOREIGN = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA")


class Workers:
    """One process of several, by an ``Accelerator``; without one, the only process, which sends no message."""

    def __init__(self, accelerator: Accelerator | None = None):
        self.accelerator = accelerator
        self.count: int = 1 if accelerator is None else accelerator.num_processes
        self.rank: int = 0 if accelerator is None else accelerator.process_index
        if accelerator is not None and accelerator.distributed_type.value in _FOREIGN:
            raise ValueError(
                f"accelerator: got one for {accelerator.distributed_type.value}, expected one process or several with a copy of the "
                "model each (MULTI_CPU, MULTI_GPU); configure accelerate without it"
            )

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def place(self, *modules: object) -> None:
        """Move these, where they are modules, to the device of this process."""
        for module in modules:
            if isinstance(module, nn.Module) and self.accelerator is not None:
                module.to(self.accelerator.device)

    def pieces(self, count: int | None) -> int:
        """How many pieces a batch is cut into: ``count``, or by default one for each process and step of accumulation."""
        accumulated = 1 if self.accelerator is None else self.accelerator.gradient_accumulation_steps
        count = self.count * accumulated if count is None else count
        if count % self.count:
            raise ValueError(
                f"microbatches: got {count} for {self.count} processes, expected a multiple, so that all have as much to do"
            )
        return count

    def own(self, pieces: int) -> range:
        """The pieces that this process computes."""
        each = pieces // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def share(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, in place, by those of the first process."""
        self.add(tensors, only_first=True)

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor], only_first: bool = False) -> None:
        """Replace tensors, in place, by their sums over the processes: one message for all."""
        if self.accelerator is None or self.count == 1 or not tensors:
            return
        wide = torch.float32
        for tensor in tensors:
            wide = torch.promote_types(wide, tensor.dtype)
        flat = torch.cat([tensor.detach().flatten().to(wide) for tensor in tensors])
        flat = self.accelerator.reduce(flat if self.first or not only_first else torch.zeros_like(flat), "sum")
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.reshape(tensor.shape))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether any process raised it. All have to ask."""
        if self.accelerator is None or self.count == 1:
            return flags
        raised = self.accelerator.reduce(
            torch.tensor(flags, device=self.accelerator.device, dtype=torch.float32), "sum"
        )
        return tuple(value > 0 for value in raised.tolist())

    def wait(self) -> None:
        """For all to arrive here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def find_workers(accelerator: Accelerator | None) -> Workers:
    """The processes there are: of this accelerator, or of one made here where ``accelerate launch`` or another launcher says so."""
    if accelerator is not None:
        return _all_there(accelerator)
    if not launched():
        return Workers()
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise ImportError(
            "launched as one of several processes, which needs accelerate; install it with: pip install 'carom[train]'"
        ) from error
    # without a device accelerate takes a CPU process for the only one, unless it is told
    return _all_there(Accelerator(cpu=not torch.accelerator.is_available()))


def _all_there(accelerator: Accelerator) -> Workers:
    """Processes that do not know of each other would each train a model of their own, and write it to one file."""
    if accelerator.num_processes < _started():
        raise ValueError(
            f"accelerator: got one for {accelerator.num_processes} process where {_started()} were launched; make it with "
            "Accelerator(cpu=True) where there is no GPU"
        )
    return Workers(accelerator)


def launched() -> bool:
    """Whether the environment is that of ``accelerate launch``, or of one process of several."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or _started() > 1


def _started() -> int:
    """How many processes a launcher says it started."""
    count = os.environ.get("WORLD_SIZE", "")
    return int(count) if count.isdecimal() else 1


def precision_of(workers: Workers, asked: str | None) -> str:
    """What the network computes in: as asked, or else as accelerate was configured; "no" or "bf16"."""
    found = asked or ("no" if workers.accelerator is None else workers.accelerator.mixed_precision)
    if found not in ("no", "bf16"):
        raise ValueError(
            f"mixed_precision: got {found!r}, expected 'no' or 'bf16', whose range is that of float32; float16 would need its "
            "losses scaled"
        )
    return found


def caller(
    network: nn.Module, device: torch.device, mixed_precision: str, compile: bool | str
) -> Callable[..., Tensor] | None:
    """What calls the network while it is trained: None for the network itself.

    Low precision ends with the network: state, coefficients and loss stay in the dtype of the data.
    """
    call: Callable[..., Any] = network
    if compile:
        call = torch.compile(network, backend="inductor" if compile is True else compile)
    if mixed_precision == "no":
        return call if compile else None

    def low(*inputs: Any, **condition: Any) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return call(*inputs, **condition)

    return low
