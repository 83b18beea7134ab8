"""Inputs: given as tensors and shapes, or inferred and named."""

import pytest
import torch
import torchvision
from hypothesis import given as generated
from hypothesis import strategies as st
from torch import nn

from layer_energy.errors import InvalidInput
from layer_energy.models import walk_model
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


TINY = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2,
        "intermediate_size": 64}  # fmt: skip
TOWERS = {"text_config": dict(TINY), "vision_config": {**TINY, "image_size": 64, "patch_size": 16}}


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("bert", TINY, "input_ids 2x128"),
        ("vit", {**TINY, "image_size": 48, "patch_size": 16}, "pixel_values 2x3x48x48"),
        ("clip", TOWERS, "input_ids 2x77, pixel_values 2x3x64x64"),
        ("wav2vec2", {**TINY, "conv_dim": [32] * 7}, "input_values 2x16000"),
        ("audio-spectrogram-transformer", TINY, "input_values 2x1024x128"),
        ("videomae", {**TINY, "image_size": 32, "num_frames": 4}, "pixel_values 2x4x3x32x32"),
        ("t5", {"num_layers": 1, "d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16},
         "input_ids 2x128, decoder_input_ids 2x128"),
        ("whisper", {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32,
                     "encoder_attention_heads": 2, "decoder_attention_heads": 2,
                     "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
         "input_features 2x80x3000, decoder_input_ids 2x128"),
        ("longformer", {**TINY, "attention_window": 32}, "input_ids 2x128"),
    ],
)  # fmt: skip
def test_transformers_of_every_sense_are_walked_offline(name, options, expected):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(name, **options)
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config).eval()
    if name == "longformer":  # reads numbers that its forward computes
        model = transformers.AutoModel.from_config(config).eval()
    trace = walk(model, batch_size=2)
    assert trace.notes[0].startswith(f"input {expected} from the Hugging Face configuration")
    assert trace.batch_size == 2
    assert trace.macs > 0


def test_images_that_are_left_out_are_named():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlavaConfig(
        vision_config={**TOWERS["vision_config"], "model_type": "clip_vision_model"},
        text_config={**TINY, "model_type": "llama", "vocab_size": 100},
    )
    with torch.device("meta"):
        trace = walk(transformers.AutoModel.from_config(config).eval())
    assert any("text alone, without an image" in note for note in trace.notes)


def test_a_configuration_file_says_which_head_it_has(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**TINY, vocab_size=500, architectures=["BertForMaskedLM"])
    config.save_pretrained(tmp_path)
    with_head = walk_model(f"hf:{tmp_path / 'config.json'}")
    config.architectures = None
    config.save_pretrained(tmp_path)
    without = walk_model(f"hf:{tmp_path / 'config.json'}")
    # a dense layer and a projection onto the vocabulary, less the pooler of the bare model
    assert with_head.macs - without.macs == 128 * (32 * 32 + 32 * 500) - 32 * 32
