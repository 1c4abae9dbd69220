"""The contract on a GPU: ``pytest -m gpu``. With ``--interpreted`` the same cases, tiny, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from attnc.testing.gpu.cases import CONTRACT, DTYPES, Suite, dry_run, on_gpu
from attnc.testing.gpu.check import checked

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> Suite:
    if request.config.getoption("--interpreted"):
        return dry_run()
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device; --interpreted runs the same cases on a CPU")
    return on_gpu()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", CONTRACT)
def test_outputs_and_gradients(suite: Suite, spec: str, dtype: str) -> None:
    (case,) = (c for c in suite.checks if (c.spec, c.dtype) == (spec, dtype))
    rows = checked(case, suite.device)
    assert {r["kind"] for r in rows} == {"output", "gradient"}
    assert not [r for r in rows if not r["agrees"]]
