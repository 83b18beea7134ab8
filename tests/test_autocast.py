"""Mixed precision: the walker casts what autocast casts."""

from collections import Counter

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layer_energy import EnergyModel, predict_energy
from layer_energy.dataset import Dataset
from layer_energy.errors import InvalidInput, ProfileError
from layer_energy.optimization import TrainingStep
from layer_energy.walk import walk
from layer_energy.walk.autocast import TO_HALF, TO_SINGLE
from tests.synthetic import DEVICE, make_dataset

PRODUCTS = {"convolution": "conv2d", "addmm": "linear", "mm": "linear", "bmm": "matmul"}


class Products(TorchDispatchMode):
    """Matrix products and casts of a real run, with the dtype they run in."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.seen[PRODUCTS[name], str(out.dtype)] += 1
        return out


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny"])
def test_products_run_in_half_precision_as_under_autocast(name):
    model = torchvision.models.get_model(name).eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad(), Products() as products:
        model(torch.randn(1, 3, 64, 64))
    trace = walk(model, (1, 3, 64, 64), autocast="bfloat16")
    seen = Counter(
        (call.workload.kind, f"torch.{call.workload.dtype}")
        for call in trace.calls
        if call.workload.kind in ("conv2d", "linear", "matmul")
    )
    assert seen == products.seen
    assert {dtype for _, dtype in seen} == {"torch.bfloat16"}


def test_lists_agree_with_the_dispatcher():
    """A cast operation has a kernel of its own under the autocast key of GPUs.

    Of recurrent layers and of cross entropy the operations inside have one.
    """
    composite = {"lstm", "gru", "rnn_tanh", "rnn_relu", "cross_entropy_loss", "nll_loss_nd"}
    for names in (TO_HALF, TO_SINGLE):
        for name in names - composite:
            packet = getattr(torch.ops.aten, name)
            tensors = [
                overload
                for overload in (getattr(packet, name_of) for name_of in packet.overloads())
                if "Tensor" in str(overload._schema)
            ]
            registered = [
                torch._C._dispatch_has_kernel_for_dispatch_key(overload.name(), "AutocastCUDA")
                for overload in tensors
            ]
            assert any(registered), name


def test_weights_are_cast_once_and_norms_stay_single():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64)
            self.norm = nn.LayerNorm(64)

        def forward(self, x):
            return self.norm(self.linear(self.linear(x)))

    calls = walk(Twice(), (8, 64), autocast="bfloat16").calls
    copies = [c.workload.params["elements"] for c in calls if c.workload.kind == "copy"]
    assert copies == [8 * 64, 64 * 64, 64, 8 * 64]  # input, weight and bias, and to the norm
    assert [c.workload.dtype for c in calls if c.workload.kind == "linear"] == ["bfloat16"] * 2
    assert [c.workload.dtype for c in calls if c.workload.kind == "layer_norm"] == ["float32"]


def test_gradients_flow_through_casts():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    calls = walk(model, (8, 64), step=TrainingStep("sgd"), autocast="bfloat16").calls
    linear = [c.workload.gradients for c in calls if c.workload.kind == "linear"]
    assert linear == ["weight", "both"]
    casts = [c for c in calls if c.workload.kind == "copy" and c.path in ("0", "2")]
    assert Counter(c.workload.gradients for c in casts) == {"none": 1, "input": 4}
    steps = {c.workload.dtype for c in calls if c.path == "(optimizer)"}
    assert steps == {"float32"}


def test_predictions_say_so_and_need_both_dtypes():
    rows = make_dataset({"linear": 60, "copy": 60, "relu": 40})
    half = [
        type(m)(**{**{f: getattr(m, f) for f in m.__slots__},
                   "workload": type(m.workload)(m.workload.kind, m.workload.params, "bfloat16")})
        for m in rows.measurements
    ]  # fmt: skip
    single = EnergyModel.fit(rows, "physical")
    both = EnergyModel.fit(
        Dataset([*rows.measurements, *half], DEVICE, rows.provenance), "physical"
    )
    report = predict_energy(nn.Linear(64, 64), (8, 64), device=both, dtype="bf16-amp")
    assert report.dtype == "bf16-amp"
    assert any("mixed precision" in note for note in report.assumptions)
    with pytest.raises(ProfileError, match="measured in float32"):
        predict_energy(nn.Linear(64, 64), (8, 64), device=single, dtype="bf16-amp")
    half_alone = EnergyModel.fit(Dataset(half, DEVICE, rows.provenance), "physical")
    with pytest.raises(ProfileError, match="not in float32, which bf16-amp runs in too; choose"):
        predict_energy(nn.Linear(64, 64), (8, 64), device=half_alone, dtype="bf16-amp")
    with pytest.raises(InvalidInput, match="autocast=None"):
        predict_energy(walk(nn.Linear(64, 64)), device=both, dtype="bf16-amp")
    with pytest.raises(InvalidInput, match="autocast must be one of"):
        walk(nn.Linear(64, 64), autocast="bf16")
