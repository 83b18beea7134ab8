"""Walking: what is found, that nothing is touched, and what is said when it fails."""

import copy
import subprocess
import sys
import threading

import pytest
import torch
import torchvision
from torch import nn

from layer_energy.errors import InvalidInput, WalkError
from layer_energy.walk import walk


def kinds_of(trace):
    return [call.workload.kind for call in trace.calls]


def test_functional_operations_are_seen(functional_model):
    trace = walk(functional_model, (2, 5, 16))
    assert kinds_of(trace) == ["linear", "attention", "add", "relu", "cat"]
    assert trace.macs == 2 * 5 * 16 * 48 + 2 * (2 * 5 * 5 * 16)
    assert all(call.modelled for call in trace.calls)
    assert [call.path for call in trace.calls] == ["linear", "", "", "", ""]


def test_a_shared_module_keeps_one_path_and_counts_its_calls(shared_model):
    trace = walk(shared_model, (1, 8))
    assert [(c.path, c.call) for c in trace.calls] == [("first", 0), ("first", 1), ("first", 2)]


def test_views_cost_nothing():
    class Views(nn.Module):
        def forward(self, x):
            return x.view(4, -1).transpose(0, 1)[1:].unsqueeze(0).expand(3, -1, -1)

    assert walk(Views(), (4, 4)).calls == []


def test_in_place_is_told_from_out_of_place():
    model = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True))
    assert [c.workload.params["in_place"] for c in walk(model, (3, 3)).calls] == [0, 1]


def test_lstm_counts_the_recurrence():
    model = nn.LSTM(10, 20, num_layers=2, batch_first=True, bidirectional=True)
    trace = walk(model, (3, 7, 10))
    per_token = sum(p.numel() for n, p in model.named_parameters() if n.startswith("weight"))
    assert trace.macs == 3 * 7 * per_token


def test_packed_sequences_are_walked():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 6, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
            return self.rnn(packed)[0].data

    trace = walk(Packed(), (2, 5, 4))
    assert "gru" in kinds_of(trace)


def test_gradients_follow_requires_grad():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    trace = walk(model, (1, 4))
    assert [c.gradients for c in trace.calls] == ["none", "weight", "input", "both"]


def test_gradients_of_an_input_that_requires_grad():
    model = nn.Linear(4, 4).requires_grad_(False)
    trace = walk(model, torch.ones(1, 4, requires_grad=True))
    assert trace.calls[0].gradients == "input"


def state_of(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [sorted(m.__dict__) for m in model.modules()],
        torch.get_rng_state(),
    )


def assert_untouched(model, before):
    weights, *rest, rng = state_of(model)
    old_weights, *old_rest, old_rng = before
    assert rest == old_rest
    assert all(torch.equal(weights[k], old_weights[k]) for k in old_weights)
    assert torch.equal(rng, old_rng)


class Unclonable(nn.Module):
    """Holds a lock, which deepcopy refuses, and keeps notes of its forward."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.seen = []

    def forward(self, x):
        self.seen.append("called")
        self.extra = 1
        return self.drop(self.norm(x))


class Scripted(nn.Module):
    """Needs values, so that no meta tensor will do, and says nothing of it."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.linear = nn.Linear(4, 4)
        self.seen = 0

    def forward(self, x):
        self.seen += 1
        return self.linear(torch.from_numpy(x.numpy() * 2))


@pytest.mark.parametrize(
    ("make", "shape", "via"),
    [
        (lambda: torchvision.models.resnet18(), (2, 3, 64, 64), "meta clone"),
        (Unclonable, (3, 4), "meta in place"),
        (Scripted, (3, 4), "CPU forward"),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(make, shape, via, training):
    model = make().train()
    seen = copy.copy(getattr(model, "seen", None))
    before = state_of(model)
    trace = walk(model, shape, training=training)
    assert trace.via == via
    assert (via == "meta clone") == (f"walked by {via}" not in trace.notes)
    assert_untouched(model, before)
    assert getattr(model, "seen", None) == seen


def test_the_users_hooks_stay_and_others_threads_are_ignored():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *a: None)
    walk(model, (1, 4))
    assert len(model[0]._forward_hooks) == 1
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_wrappers_are_taken_off_and_said():
    model = nn.DataParallel(nn.Linear(3, 3))
    trace = walk(model, (1, 3))
    assert trace.model == "Linear"
    assert any("DataParallel" in note for note in trace.notes)
    compiled = torch.compile(nn.Linear(3, 3))
    assert any("torch.compile" in note for note in walk(compiled, (1, 3)).notes)


def test_unclaimed_operations_are_recorded_and_flagged():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x) if x.dim() == 3 else torch.sort(x)[0]

    (call,) = walk(Odd(), (10, 8)).calls
    assert not call.modelled
    assert call.workload.kind == "generic"
    assert call.workload.params["bytes_in"] == 4 * 80
    assert call.workload.params["bytes_out"] == (4 + 8) * 80


def test_a_wrong_input_names_the_module_and_the_operation():
    with pytest.raises(WalkError, match=r"module features\.0, operation conv2d.*expects 3 input"):
        walk(torchvision.models.vgg11(), (1, 4, 224, 224))


def test_lazy_modules_are_refused():
    with pytest.raises(WalkError, match="still lazy"):
        walk(nn.Sequential(nn.LazyLinear(3)), (1, 4))


def test_not_a_module():
    with pytest.raises(InvalidInput, match=r"torch\.nn\.Module"):
        walk("vgg16")


def test_batch_size_that_contradicts_the_input():
    with pytest.raises(InvalidInput, match="holds 2"):
        walk(nn.Linear(3, 3), (2, 3), batch_size=4)


def test_channels_last_is_seen_through_a_network():
    model = torchvision.models.resnet18().to(memory_format=torch.channels_last)
    x = torch.empty(1, 3, 64, 64, device="meta").to(memory_format=torch.channels_last)
    convolutions = [c for c in walk(model, x).calls if c.workload.kind == "conv2d"]
    assert all(c.workload.params["channels_last"] for c in convolutions[1:])


def test_memory_stays_small_for_a_large_model():
    with torch.device("meta"):
        model = torchvision.models.vit_h_14()
    trace = walk(model, (1, 3, 224, 224))
    assert trace.macs > 1.6e11


def test_same_padding_keeps_its_multiply_accumulates():
    for kernel in (3, 4):
        (*_, call) = walk(nn.Conv2d(8, 16, kernel, padding="same"), (2, 8, 20, 20)).calls
        assert call.workload.kind == "conv2d"
        assert call.cost.macs == 2 * 8 * 16 * kernel**2 * 20**2


def test_dropout_costs_nothing_at_inference_in_place_or_not():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5, inplace=True))
    assert walk(model, (3, 4)).calls == []
    assert kinds_of(walk(model, (3, 4), training=True)) == ["dropout", "dropout"]


def test_masks_select_everything_and_say_so():
    class Masked(nn.Module):
        def forward(self, x):
            kept = torch.where(x[:, 0] > 0)[0]
            return x[kept] + x[x[:, 1] > 0]

    trace = walk(Masked(), (50, 4))
    assert any("nonzero" in note for note in trace.notes)
    assert any("mask" in note for note in trace.notes)
    assert trace.calls[-1].workload.params["elements"] == 200


def test_the_callers_input_is_not_written_to_by_a_real_forward():
    class Writes(Scripted):
        def forward(self, x):
            return super().forward(x.sub_(1))

    x = torch.ones(3, 4)
    trace = walk(Writes(), x)
    assert trace.via == "CPU forward"
    assert (x == 1).all()


def test_random_draws_of_the_forward_leave_the_generators_alone():
    import random

    class Draws(nn.Module):
        def forward(self, x):
            return x * torch.rand(1) * random.random()

    before, python_before = torch.get_rng_state(), random.getstate()
    walk(Draws(), (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python_before


def test_a_matrix_product_with_a_row_bias_reads_a_row_not_a_matrix():
    class Addmm(nn.Module):
        def forward(self, x):
            return torch.addmm(torch.zeros(30, device=x.device), x, x.new_zeros(20, 30))

    call = walk(Addmm(), (10, 20)).calls[-1]
    assert call.workload.params["bias"] == 0
    assert call.cost.macs == 10 * 20 * 30


def test_the_batch_of_a_sequence_first_network_is_its_second_dimension():
    assert walk(nn.LSTM(10, 20), batch_size=4).batch_size == 4


def test_integers_are_promoted_by_functions_of_the_reals():
    class Sigmoid(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x) * 2.0

    trace = walk(Sigmoid(), torch.zeros(3, 4, dtype=torch.int64))
    assert [c.workload.dtype for c in trace.calls] == ["int64", "float32"]


@pytest.mark.parametrize(
    ("model", "shape"), [(nn.BatchNorm2d(3), (1, 4, 5, 5)), (nn.LayerNorm(8), (2, 9))]
)
def test_normalisations_of_the_wrong_width_are_refused(model, shape):
    with pytest.raises(WalkError, match="norm"):
        walk(model, shape)


def test_operands_are_broadcast():
    class Broadcast(nn.Module):
        def forward(self, x):
            return x[:1] * x + x

    trace = walk(Broadcast(), (3, 4))
    assert [c.workload.params["elements"] for c in trace.calls] == [12, 12]


class Odd(nn.Module):
    """Keeps a table, and says itself how it is copied."""

    def __init__(self, parent):
        super().__init__()
        self.parents = {"first": parent}
        self.table = {"calls": 0, "kept": [1, 2]}
        self.copied = False

    def __deepcopy__(self, memo):
        twin = Odd(copy.deepcopy(self.parents["first"], memo))
        twin.copied = True
        return twin

    def forward(self, x):
        assert self.copied
        self.table["calls"] += 1
        self.table["kept"].append(3)
        return x + 1


def test_a_modules_own_way_of_copying_is_used_and_nothing_is_shared():
    class Parent(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Odd(None)
            self.state = {"calls": 0, "nested": {"kept": []}}

        def forward(self, x):
            self.state["calls"] += 1
            self.state["nested"]["kept"].append(1)
            return self.odd(x)

    model = Parent()
    assert walk(model, (2, 2)).via == "meta clone"
    assert model.odd.table == {"calls": 0, "kept": [1, 2]}
    assert model.state == {"calls": 0, "nested": {"kept": []}}


def test_the_package_walks_like_the_function_it_hides():
    code = (
        "import layer_energy.walk, layer_energy, torch; from layer_energy import walk; "
        "print(len(walk(torch.nn.Linear(2, 3), (1, 2)).calls), walk.walk is not None)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "True"]
