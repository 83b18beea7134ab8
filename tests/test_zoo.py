"""The torchvision zoo against trusted counters."""

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from layer_energy.models import build_model
from layer_energy.walk import infer, walk

DETECTION = models.list_models(module=models.detection)
"""Depend on values: FlopCounterMode cannot run them on meta tensors, so there is no oracle."""

FLOP_COUNTER_DISAGREES: dict[str, str] = {}
"""Model → why; empty: both count convolutions, matrix products and attention alike."""

MATRIX_OPERATIONS = ("conv", "linear", "matmul", "einsum", "bmm", "addmm", "mm", "baddbmm")
FVCORE_AGREES = ("alexnet", "vgg11", "resnet18", "resnext50_32x4d", "mobilenet_v2", "densenet121",
                 "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5", "efficientnet_b0",
                 "regnet_y_400mf", "convnext_tiny", "googlenet")  # fmt: skip
FVCORE_DISAGREES = {
    "vit_b_32": "fvcore does not see the fused multi-head attention of a real CPU forward",
}


def flop_counter_macs(model, inputs):
    model = model.to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs.args)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", models.list_models())
def test_every_torchvision_model_walks_and_counts_as_torch_does(name):
    model = build_model(name).eval()
    inputs = infer(model)
    trace = walk(model, *inputs.args)
    assert trace.via == "meta clone"
    assert trace.macs > 1e6
    if name in DETECTION:
        assert any("kept every" in note for note in trace.notes) or name == "retinanet"
    elif name not in FLOP_COUNTER_DISAGREES:
        assert trace.macs == pytest.approx(flop_counter_macs(model, inputs), rel=1e-3)
    if name in models.list_models(module=models):
        unclaimed = sorted({call.op for call in trace.calls if not call.modelled})
        assert unclaimed == []


@pytest.mark.parametrize("name", [*FVCORE_AGREES, *FVCORE_DISAGREES])
def test_counts_are_those_of_fvcore(name):
    fvcore = pytest.importorskip("fvcore.nn")
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model = models.get_model(name, weights=None).eval()
    x = torch.zeros(1, 3, 64, 64) if name != "vit_b_32" else torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        analysis = fvcore.FlopCountAnalysis(model, x)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator = analysis.by_operator()
    macs = sum(by_operator[op] for op in MATRIX_OPERATIONS)
    ours = walk(model, x).macs
    if name in FVCORE_DISAGREES:
        assert ours > 1.1 * macs, FVCORE_DISAGREES[name]
    else:
        assert ours == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "inception_v3"])
def test_quantised_models_fall_back_to_a_real_forward_and_say_so(name):
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch cannot run quantised models")
    builder = models.get_model_builder(f"quantized_{name}")
    model = builder(weights=None, quantize=True).eval()
    trace = walk(model)
    assert trace.via == "CPU forward"
    assert any("CPU forward" in note for note in trace.notes)
    assert any(call.op.startswith("quantized.") for call in trace.calls)
    plain = builder(weights=None, quantize=False).eval()
    assert trace.macs == walk(plain).macs
    assert {c.op for c in trace.calls if not c.modelled} <= {"quantize_per_tensor", "dequantize"}


def test_rnn_timm_and_transformers_agree_with_torch():
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    mixer = timm.create_model("mixer_s32_224")
    inputs = infer(mixer)
    assert walk(mixer, *inputs.args).macs == flop_counter_macs(mixer.to("meta").eval(), inputs)
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=1000)
    gpt2 = transformers.GPT2Model(config).eval()
    trace = walk(gpt2)
    ids = torch.zeros(1, 128, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        gpt2(ids)
    # a real CPU's fused attention is not counted there: two products of 128 × 128 × 64 a layer
    attention = sum(c.cost.macs for c in trace.calls if c.workload.kind == "attention")
    assert attention == 2 * (2 * 128 * 128 * 64)
    assert counter.get_total_flops() // 2 in (trace.macs, trace.macs - attention)
