"""Inputs: given as tensors and shapes, or inferred and named."""

import pytest
import torch
import torchvision
from hypothesis import given as generated
from hypothesis import strategies as st
from torch import nn

from layer_energy.errors import InvalidInput
from layer_energy.walk import infer, parse_shape, walk


@generated(st.lists(st.integers(1, 512), min_size=1, max_size=5), st.sampled_from([",", ", ", "x"]))
def test_shapes_are_parsed(sizes, separator):
    parsed = parse_shape(separator.join(map(str, sizes)) + ":int64")
    assert list(parsed.shape) == sizes
    assert parsed.dtype == torch.int64
    assert parsed.is_meta


@pytest.mark.parametrize("text", ["", "1,,3", "a", "1,-3", "1,3:", "1.5,3"])
def test_what_is_no_shape_says_what_is(text):
    with pytest.raises(InvalidInput, match="1,3,224,224"):
        parse_shape(text)


def test_unknown_dtype():
    with pytest.raises(InvalidInput, match="float31"):
        parse_shape("1,2:float31")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (lambda: nn.Conv1d(5, 6, 3), (1, 5, 1024)),
        (lambda: nn.Sequential(nn.Conv2d(1, 6, 3)), (1, 1, 224, 224)),
        (lambda: nn.Conv3d(2, 6, 3), (1, 2, 16, 112, 112)),
        (lambda: nn.Linear(7, 2), (1, 7)),
        (lambda: nn.Embedding(50, 2), (1, 128)),
        (lambda: nn.LSTM(9, 4), (128, 1, 9)),
        (lambda: nn.LSTM(9, 4, batch_first=True), (1, 128, 9)),
        (lambda: torchvision.models.inception_v3(init_weights=False), (1, 3, 299, 299)),
    ],
)
def test_the_first_layer_or_the_class_gives_an_input(model, shape):
    inputs = infer(model())
    assert tuple(inputs.tensors[0].shape) == shape
    assert "x".join(map(str, shape)) in inputs.assumed[0]


def test_batch_size_of_an_inferred_input():
    trace = walk(nn.Linear(7, 2), batch_size=5)
    assert trace.batch_size == 5
    assert trace.inputs == "5x7"


def test_nothing_fits():
    with pytest.raises(InvalidInput, match=r"predict_energy\(model, \(1, 3, 224, 224\)\)"):
        infer(nn.ReLU())


def test_batch_size_must_be_positive():
    with pytest.raises(InvalidInput, match="at least 1"):
        infer(nn.Linear(2, 2), 0)


def test_keyword_and_nested_inputs():
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, pair, *, scale):
            return self.linear(pair["a"]) * scale + pair["b"][0]

    x = torch.zeros(2, 4)
    trace = walk(Nested(), {"a": x, "b": [x]}, kwargs={"scale": torch.empty(2, 4)})
    assert [c.workload.kind for c in trace.calls] == ["linear", "mul", "add"]


def test_timm_and_transformers_inputs():
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    assert walk(timm.create_model("mobilenetv3_small_050")).inputs == "1x3x224x224"
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128
    )
    trace = walk(transformers.BertModel(config))
    assert "BertConfig" in trace.notes[0]
    assert sum(c.workload.kind == "attention" for c in trace.calls) == 2
    ids = torch.zeros(2, 9, dtype=torch.int64)
    by_name = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert walk(transformers.BertModel(config), kwargs=by_name).batch_size == 2
