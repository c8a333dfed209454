"""What every test shares: one thread, fixed seeds, and how hard hypothesis searches."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, register_random, settings

# pytest-xdist runs one process per core; threads on top of that only make the cores fight over the tests.
torch.set_num_threads(1)


class TorchRandom:
    """torch's global generator, handed to hypothesis, which seeds it before every example and puts it back."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


torch_random = TorchRandom()  # by name: hypothesis holds it only weakly
register_random(torch_random)

# `ci` draws the same examples everywhere, so a failure in CI is a failure at home; `thorough` looks for new ones:
#     CAROM_HYPOTHESIS=thorough make test
# No deadlines and no complaints about slow drawing: on a loaded machine they measure the machine.
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", common, max_examples=25, derandomize=True)
settings.register_profile("thorough", common, max_examples=200, derandomize=False)
settings.load_profile(os.environ.get("CAROM_HYPOTHESIS", "ci"))


@pytest.fixture(autouse=True)
def _leave_torch_as_found() -> Iterator[None]:
    """Every test starts from seed 0 and float32, whatever ran before it in the same process."""
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
