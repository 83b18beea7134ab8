"""Studies: their file, their order, and runs that survive a kill."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from layer_energy.errors import DatasetError, DeviceLost, InvalidInput, MeterError
from layer_energy.meters import RaplMeter, Reading
from layer_energy.study import analyze, load_study, read_runs, run_study, trainer
from layer_energy.study.images import load_images
from layer_energy.study.loop import build_classifier, fit
from layer_energy.study.runner import LOG_NAME
from layer_energy.study.spec import Configuration, Data, Protocol, Study, Training
from layer_energy.study.table import Run
from tests.test_meters import add_zone

POWER_W = 5.0

STUDY = """
networks = ["resnet18", "mobilenet_v2"]
batch_sizes = [8, 16]
image_sizes = [32]
repetitions = 3
[data]
source = "digits"
[training]
epochs = 2
[protocol]
warm_up_s = 0
pause_s = 0
"""


class FakeTrainer:
    """Runs of known energy, in no time; may break at a run, or in the warm-up of a batch size."""

    def __init__(self, machine="this", breaks=None, cold=None):
        self.machine, self.breaks, self.cold = machine, breaks or {}, cold or {}
        self.trained, self.warmed_up = [], []

    def identity(self):
        return {"machine": self.machine}

    def facts(self):
        return {"assumptions": ["Energy is simulated: nothing was measured."]}

    def warm_up(self, configuration):
        self.warmed_up.append(configuration)
        if error := self.cold.get(configuration.batch_size):
            raise error

    def train(self, planned, should_stop):
        if error := self.breaks.get(planned.run_id):
            raise error
        self.trained.append(planned.run_id)
        time_s = planned.configuration.batch_size * (1 + planned.run_id / 100)
        return Run(
            planned.run_id, planned.repetition, planned.configuration, 2, 0, 100, time_s,
            POWER_W * time_s, 0.5, 0.75, 0.7, "simulated", 0.0, "fake", "2026-01-01T00:00:00+00:00",
        )  # fmt: skip


@pytest.fixture
def study(tmp_path):
    return load_study(written(tmp_path, STUDY))


def written(folder, text):
    path = folder / "study.toml"
    path.write_text(text)
    return path


class TestFile:
    def test_what_is_read(self, study):
        assert study.networks == ("resnet18", "mobilenet_v2")
        assert study.devices == ("cpu",)
        assert study.training == Training(epochs=2)
        assert study.protocol == Protocol(warm_up_s=0, pause_s=0)

    def test_the_protocol_is_the_papers_if_none_is_given(self):
        assert (Protocol().warm_up_s, Protocol().pause_s) == (600, 300)

    def test_a_folder_is_seen_from_the_study_file(self, tmp_path):
        text = STUDY.replace('source = "digits"', 'source = "folder"\npath = "images"')
        assert load_study(written(tmp_path, text)).data.path == str((tmp_path / "images").resolve())

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("repetitions = 3", "repetitions = 0", "repetitions must be 1 or more, got 0"),
            ("repetitions = 3", "repetitons = 3", "repetitons is not known; the keys are networks"),
            ("repetitions = 3", "", "repetitions is missing"),
            ("repetitions = 3", "repetitions = true", "repetitions must be a whole number"),
            ("repetitions = 3", "repetitions = 3\nschema_version = 2", "schema_version is 2"),
            ("[8, 16]", "[8, 8]", "batch_sizes must name one or more, each once"),
            ("[8, 16]", "[8, 0]", "batch_sizes must be 1 or more"),
            ("[8, 16]", '["8"]', "batch_sizes must be a list of whole numbers"),
            ("[8, 16]", "[]", "batch_sizes must name one or more"),
            ("epochs = 2", "epochs = 0", "training.epochs must be 1 or more"),
            ("epochs = 2", "epochs = 1.5", "training.epochs must be a whole number, got 1.5"),
            ("epochs = 2", "", "training.epochs is missing"),
            ("epochs = 2", "epochs = 2\nfrozen_epochs = 3", "must be from 0 to training.epochs, 2"),
            ("epochs = 2", 'epochs = 2\noptimizer = "lbfgs"', "one of sgd, adam, adamw"),
            ("epochs = 2", "epochs = 2\nlearning_rate = -1", "training.learning_rate must be abov"),
            ('"digits"', '"imagenet"', "data.source must be one of digits, generated, folder"),
            ('"digits"', '"folder"', 'data.source = "folder" needs data.path'),
            ('"digits"', '"digits"\nclasses = 3', "does not take data.classes"),
            ('"digits"', '"generated"\nclasses = 3', "needs data.images"),
            ('"digits"', '"digits"\nvalidation_share = 1', "data.validation_share must be above 0"),
            ("pause_s = 0", "pause_s = -1", "protocol.pause_s must be 0 or more seconds"),
            ("pause_s = 0", "pause_s = inf", "pause_s must be 0 or more seconds, finite, got inf"),
            ("warm_up_s = 0", "warm_up_s = inf", "protocol.warm_up_s must be 0 or more seconds"),
            ("warm_up_s = 0", "warm_up_s = nan", "protocol.warm_up_s must be 0 or more seconds"),
            ("warm_up_s = 0", "max_power_w = inf", "max_power_w must be above 0 W, finite"),
            ("epochs = 2", "epochs = 2\nlearning_rate = inf", "rate must be above 0, finite"),
            ("[data]", 'devices = ["cuda", "cuda:0"]\n[data]', "each once, got ['cuda', 'cuda:0']"),
            ("pause_s = 0", "pause_m = 5", "protocol.pause_m is not known"),
            ("[protocol]", "[[protocol]]", "protocol must be a section"),
            ("[data]", "[data", "is not TOML"),
        ],
    )  # fmt: skip
    def test_mistakes_say_what_was_expected(self, tmp_path, old, new, message):
        assert old in STUDY
        with pytest.raises(InvalidInput) as error:
            load_study(written(tmp_path, STUDY.replace(old, new, 1)))
        assert message in str(error.value)
        assert "study.toml" in str(error.value)

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"nothing\.toml cannot be read: No such file"):
            load_study(tmp_path / "nothing.toml")


class TestOrder:
    @given(
        networks=st.lists(st.text(min_size=1), min_size=1, max_size=4, unique=True),
        batch_sizes=st.lists(st.integers(1, 512), min_size=1, max_size=3, unique=True),
        repetitions=st.integers(1, 6),
        seed=st.integers(0, 9),
    )
    def test_each_repetition_holds_each_configuration_once(
        self, networks, batch_sizes, repetitions, seed
    ):
        study = Study(tuple(networks), tuple(batch_sizes), (32,), repetitions,
                      Data("digits"), Training(1), seed=seed)  # fmt: skip
        order = study.order()
        assert [planned.run_id for planned in order] == list(range(len(order)))
        assert order == study.order()
        for repetition in range(1, repetitions + 1):
            block = [p.configuration for p in order if p.repetition == repetition]
            assert sorted(map(str, block)) == sorted(map(str, study.configurations()))
        assert [p.repetition for p in order] == sorted(p.repetition for p in order)

    def test_the_seed_decides(self, study):
        assert study.order() != replace(study, seed=1).order()
        blocks = {
            tuple(p.configuration for p in study.order() if p.repetition == repetition)
            for repetition in (1, 2, 3)
        }
        assert len(blocks) > 1  # shuffled anew, not once


class TestRunning:
    def test_the_table_holds_every_run(self, study, tmp_path):
        summary = run_study(study, tmp_path / "out", FakeTrainer())
        assert summary.complete
        assert (summary.planned, summary.done, summary.resumed) == (12, 12, 0)
        table = read_runs(summary.table)
        assert table["run_id"].tolist() == list(range(12))
        assert table["energy_per_image_j"].tolist() == pytest.approx(
            (POWER_W * table["time_s"] / 100).tolist()
        )
        assert table["power_w"].tolist() == pytest.approx([POWER_W] * 12)
        assert table.attrs["notes"] == [
            "joules: simulated, ±0% on top of what is shown",
            "Energy is simulated: nothing was measured.",
        ]
        assert not (tmp_path / "out" / LOG_NAME).exists()

    def test_a_finished_study_is_not_overwritten(self, study, tmp_path):
        run_study(study, tmp_path, FakeTrainer())
        with pytest.raises(DatasetError, match="already holds a finished study"):
            run_study(study, tmp_path, FakeTrainer())

    @pytest.mark.parametrize("after", [0, 1, 7, 11])
    def test_stopped_anywhere_it_goes_on_to_the_same_table(self, study, tmp_path, after):
        first, second = FakeTrainer(), FakeTrainer()
        summary = run_study(
            study, tmp_path / "cut", first, should_stop=lambda: len(first.trained) >= after
        )
        assert (summary.done, summary.complete) == (after, False)
        assert (summary.table is not None) == (after > 0)  # what there is can be looked at
        again = run_study(study, tmp_path / "cut", second)
        assert (again.resumed, again.done) == (after, 12)
        assert first.trained + second.trained == list(range(12))
        whole = run_study(study, tmp_path / "whole", FakeTrainer())
        assert again.table.read_bytes() == whole.table.read_bytes()

    def test_a_line_cut_by_a_kill_costs_that_run_only(self, study, tmp_path):
        first = FakeTrainer()
        run_study(study, tmp_path, first, should_stop=lambda: len(first.trained) >= 5)
        log = tmp_path / LOG_NAME
        log.write_bytes(log.read_bytes()[:-9])
        again = FakeTrainer()
        summary = run_study(study, tmp_path, again, should_stop=lambda: len(again.trained) >= 3)
        assert (summary.dropped, summary.resumed) == (1, 4)
        assert again.trained == [4, 5, 6]
        last = FakeTrainer()
        summary = run_study(study, tmp_path, last)
        assert (summary.dropped, summary.resumed) == (
            0,
            7,
        )  # nothing was written behind half a line
        assert last.trained == list(range(7, 12))

    def test_a_kill_in_the_first_line_of_the_log(self, study, tmp_path):
        first = FakeTrainer()
        run_study(study, tmp_path, first, should_stop=lambda: True)
        log = tmp_path / LOG_NAME
        log.write_bytes(log.read_bytes()[:20])
        assert run_study(study, tmp_path, FakeTrainer()).complete

    @pytest.mark.parametrize("content", [b"notes", b"notes\nmore"])
    def test_another_file_of_that_name_is_left_alone(self, study, tmp_path, content):
        log = tmp_path / LOG_NAME
        log.write_bytes(content)
        with pytest.raises(DatasetError, match="does not begin as the log of a study"):
            run_study(study, tmp_path, FakeTrainer())
        assert log.read_bytes() == content

    def test_a_damaged_line_is_told_by_its_checksum(self, study, tmp_path):
        first = FakeTrainer()
        run_study(study, tmp_path, first, should_stop=lambda: len(first.trained) >= 5)
        log = tmp_path / LOG_NAME
        lines = log.read_bytes().splitlines(keepends=True)
        lines[2] = lines[2].replace(b'"images":100', b'"images":900')
        log.write_bytes(b"".join(lines))
        again = FakeTrainer()
        assert run_study(study, tmp_path, again).dropped == 1
        assert again.trained == [1, *range(5, 12)]

    def test_another_study_or_machine_does_not_go_on(self, study, tmp_path):
        first = FakeTrainer()
        run_study(study, tmp_path, first, should_stop=lambda: len(first.trained) >= 1)
        with pytest.raises(
            DatasetError, match=r"another study or machine: machine was 'this' and is now 'that'\."
        ):
            run_study(study, tmp_path, FakeTrainer("that"))
        with pytest.raises(DatasetError, match=r"machine: study\.seed was 0 and is now 1\. Repeat"):
            run_study(replace(study, seed=1), tmp_path, FakeTrainer())

    def test_another_spelling_of_the_path_is_the_same_study(self, tmp_path, monkeypatch):
        text = STUDY.replace('source = "digits"', 'source = "folder"\npath = "images"')
        path, first = written(tmp_path, text), FakeTrainer()
        run_study(load_study(path), tmp_path, first, should_stop=lambda: len(first.trained) >= 1)
        monkeypatch.chdir(tmp_path)
        assert run_study(load_study("study.toml"), tmp_path, FakeTrainer()).resumed == 1

    def test_a_failed_run_does_not_cost_the_others_and_is_tried_again(self, study, tmp_path):
        order = study.order()
        twice = [p.run_id for p in order if p.configuration == order[3].configuration][:2]
        broken = FakeTrainer(breaks=dict.fromkeys(twice, RuntimeError("out of memory")))
        summary = run_study(study, tmp_path, broken)
        assert (summary.done, summary.complete) == (10, False)
        assert summary.failed == {
            f"run {i}, {order[3].configuration}, repetition {n}": "RuntimeError: out of memory"
            for n, i in enumerate(twice, 1)
        }
        again = FakeTrainer()
        assert run_study(study, tmp_path, again).complete
        assert again.trained == twice

    @pytest.mark.parametrize("error", [MeterError("gone"), DeviceLost("gone")])
    def test_what_no_run_can_do_without_ends_the_study_and_keeps_the_runs(
        self, study, tmp_path, error
    ):
        with pytest.raises(type(error)):
            run_study(study, tmp_path, FakeTrainer(breaks={3: error}))
        assert len(read_runs(tmp_path / "runs.csv")) == 3
        assert run_study(study, tmp_path, FakeTrainer()).resumed == 3

    @pytest.mark.parametrize("error", [MeterError("gone"), DeviceLost("gone")])
    def test_likewise_in_the_warm_up(self, study, tmp_path, error):
        warm = replace(study, protocol=Protocol(warm_up_s=5, pause_s=0))
        with pytest.raises(type(error)):
            run_study(
                warm, tmp_path, FakeTrainer(cold={8: error}), clock=itertools.count().__next__
            )

    def test_a_configuration_that_fails_in_the_warm_up_does_not_cost_the_others(
        self, study, tmp_path
    ):
        warm = replace(study, protocol=Protocol(warm_up_s=4, pause_s=0))
        fake = FakeTrainer(cold={8: RuntimeError("out of memory")})
        summary = run_study(warm, tmp_path, fake, clock=itertools.count().__next__)
        eight, sixteen = ([c for c in study.configurations() if c.batch_size == b] for b in (8, 16))
        assert summary.failed == {f"warm-up of {c}": "RuntimeError: out of memory" for c in eight}
        assert [fake.warmed_up.count(c) for c in (*eight, *sixteen)] == [1, 1, 3, 3]
        assert fake.trained == list(range(12))  # a run says itself whether it can be done

    def test_a_warm_up_ends_if_every_configuration_fails_in_it(self, study, tmp_path):
        warm = replace(study, protocol=Protocol(warm_up_s=1000, pause_s=0))
        fake = FakeTrainer(cold=dict.fromkeys((8, 16), ValueError("batch of 1")))
        summary = run_study(warm, tmp_path, fake, clock=itertools.count().__next__)
        assert len(summary.failed) == len(fake.warmed_up) == 4
        assert summary.complete

    def test_pauses_come_before_each_run_and_end_at_a_stop(self, study, tmp_path):
        slept, fake = [], FakeTrainer()
        paused = replace(study, protocol=Protocol(warm_up_s=1, pause_s=3))
        run_study(
            paused, tmp_path, fake, sleep=slept.append, clock=itertools.count(step=0.5).__next__,
            should_stop=lambda: len(fake.trained) == 2 and sum(slept) >= 7,
        )  # fmt: skip
        assert fake.warmed_up == study.configurations()
        assert fake.trained == [0, 1]
        assert 7 <= sum(slept) < 8


CHILD = """
import sys
from layer_energy.study import analyze, load_study, run_study
from tests.test_study import FakeTrainer
class Slow(FakeTrainer):
    def train(self, planned, should_stop):
        if planned.run_id == 4:
            print("hanging", flush=True)
            sys.stdin.read()
        return super().train(planned, should_stop)
run_study(load_study(sys.argv[1]), sys.argv[2], Slow())
"""


def test_killed_in_the_middle_of_a_run(tmp_path):
    path, out = written(tmp_path, STUDY), tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"hanging\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    again = FakeTrainer()
    summary = run_study(load_study(path), out, again)
    assert (summary.resumed, summary.complete) == (4, True)
    assert again.trained == list(range(4, 12))


class TestImages:
    def test_digits_are_split_by_class(self):
        images = load_images(Data("digits", images=500, validation_share=0.3), 16, seed=0)
        assert (len(images.training), len(images.validation)) == (350, 150)
        assert images.classes == 10
        assert [label for _, label in images.validation] == images.truth
        assert min(images.truth.count(digit) for digit in range(10)) >= 14
        pixels, _ = images.training[0]
        assert pixels.shape == (3, 16, 16)
        assert torch.equal(pixels[0], pixels[2])
        assert not set(images.training.indices) & set(images.validation.indices)

    def test_generated_images_follow_from_the_seed(self):
        data = Data("generated", images=40, classes=4)
        one, same, other = (load_images(data, 8, seed) for seed in (0, 0, 1))
        assert torch.equal(one.training[0][0], same.training[0][0])
        assert not torch.equal(one.training[0][0], other.training[0][0])
        assert sorted(set(one.truth)) == [0, 1, 2, 3]

    def test_a_folder_of_images(self, tmp_path):
        from torchvision.transforms.functional import to_pil_image

        for name, level in (("black", 0.0), ("white", 1.0)):
            (tmp_path / name).mkdir()
            for i in range(5):
                to_pil_image(torch.full((3, 20, 30), level)).save(tmp_path / name / f"{i}.png")
        images = load_images(Data("folder", validation_share=0.4, path=str(tmp_path)), 8, 0)
        assert (len(images.training), len(images.validation), images.classes) == (6, 4, 2)
        for pixels, label in images.validation:
            assert torch.equal(pixels, torch.full((3, 8, 8), float(label)))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (Data("digits", images=5000), "5000 images of 1797 in 10 classes cannot be split"),
            (Data("folder", path="nowhere"), "nowhere does not hold images by class"),
        ],
    )
    def test_what_cannot_be_had(self, data, message):
        with pytest.raises(InvalidInput, match=message):
            load_images(data, 8, 0)


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 7)
    )


def headless():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def no_batch_of_one():
    """Batch statistics of one value each: torch refuses to train it on a single image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 7))


class StandIn:
    """A meter that counts so many joules a read."""

    name, quality, relative_uncertainty = "stand-in", "simulated", 0.0
    period_s, assumptions = 0.0, ()

    def __init__(self, joules=1.0):
        self.joules, self.reads = joules, 0

    def read(self):
        self.reads += 1
        return Reading(time.perf_counter(), self.reads * self.joules)


HERE = "tests.test_study"


class TestLoop:
    @pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18", "densenet121", f"{HERE}:small"])
    def test_the_head_gives_the_classes(self, name):
        classifier = build_classifier(name, 5)
        size = 8 if ":" in name else 32
        classifier.network.eval()
        assert classifier.network(torch.zeros(2, 3, size, size)).shape == (2, 5)

    def test_a_network_without_a_head(self):
        with pytest.raises(InvalidInput, match="ends in BatchNorm1d; a study needs a classifier"):
            build_classifier(f"{HERE}:headless", 5)

    def test_images_are_counted_and_the_classes_are_those_of_the_trained_network(self):
        images = load_images(Data("digits", images=100), 8, 0)
        classifier = build_classifier(f"{HERE}:small", 10)
        steps = []
        seen, predicted = fit(
            classifier,
            images,
            32,
            Training(epochs=3),
            torch.device("cpu"),
            0,
            lambda: steps.append(1),
        )
        assert seen == 3 * (2 * 32 + 30)  # of 70 two whole batches, and 30 to validate
        assert len(steps) == 3 * (2 + 1)
        pixels = torch.stack([image for image, _ in images.validation])
        assert predicted == classifier.network.eval()(pixels).argmax(1).tolist()

    @pytest.mark.parametrize(("frozen_epochs", "moves"), [(2, False), (1, True), (0, True)])
    def test_frozen_epochs_leave_all_but_the_head(self, frozen_epochs, moves):
        images = load_images(Data("digits", images=100), 8, 0)
        classifier = build_classifier(f"{HERE}:small", 10)
        before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
        training = Training(epochs=2, frozen_epochs=frozen_epochs)
        fit(classifier, images, 32, training, torch.device("cpu"), 0, lambda: None)
        after = classifier.network.state_dict()
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert {"4.weight", "4.bias"} <= moved
        assert ("0.weight" in moved, "1.running_mean" in moved) == (moves, moves)


class TestTorch:
    @pytest.fixture
    def real(self):
        return Study(
            (f"{HERE}:small",), (16,), (8,), 3, Data("digits", images=300),
            Training(epochs=2, learning_rate=0.01), Protocol(warm_up_s=0.01, pause_s=0),
        )  # fmt: skip

    def test_a_real_study(self, real, tmp_path):
        began_s = time.perf_counter()
        summary = run_study(real, tmp_path)
        assert summary.complete, summary.failed
        table = read_runs(summary.table)
        assert table["time_s"].sum() < time.perf_counter() - began_s
        assert (table["images"] == 2 * (13 * 16 + 90)).all()
        assert (table["accuracy"] > 0.2).all()  # ten classes
        assert table["f1"].between(0, 1).all()
        assert table["f1"].nunique() > 1  # other initial weights in each repetition
        assert table["utilisation"].between(0, 1.05).all()
        assert (table["energy_j"] > 0).all()
        assert set(table["quality"]) <= {"measured", "estimated"}

    def test_a_stop_is_asked_for_after_every_batch(self, real, tmp_path):
        asked = []
        summary = run_study(real, tmp_path, should_stop=lambda: asked.append(1) or len(asked) > 10)
        assert (summary.done, len(asked)) == (0, 11)

    def test_counters_that_wrap_more_than_once_in_a_run(self, real, tmp_path, monkeypatch):
        range_uj, steps = 1_000_000, []
        counter = add_zone(tmp_path / "powercap", "intel-rapl:0", "package-0", range_uj=range_uj)

        def costly(*args):
            def step():
                steps.append(1)
                counter.write_text(str(len(steps) * 700_000 % range_uj))
                args[-1]()

            return fit(*args[:-1], step)

        meter = RaplMeter(tmp_path / "powercap")
        monkeypatch.setattr(trainer, "open_meter", lambda name: meter)
        monkeypatch.setattr(trainer, "fit", costly)
        monkeypatch.setattr(trainer, "READ_EVERY_S", 0.0)
        one = replace(real, repetitions=1, protocol=Protocol(warm_up_s=0, pause_s=0))
        table = read_runs(run_study(one, tmp_path / "out").table)
        assert len(steps) == 2 * (13 + 6)  # batches of training and of validation
        assert table["energy_j"].tolist() == pytest.approx([0.7 * len(steps)])

    def test_the_meter_is_not_read_at_each_step(self, real, tmp_path, monkeypatch):
        meter = StandIn()
        monkeypatch.setattr(trainer, "open_meter", lambda name: meter)
        one = replace(real, repetitions=1, protocol=Protocol(warm_up_s=0, pause_s=0))
        assert run_study(one, tmp_path).complete
        assert meter.reads == 2

    def test_a_run_too_short_for_the_meter_fails(self, real, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "open_meter", lambda name: StandIn(joules=0.0))
        summary = run_study(replace(real, repetitions=1), tmp_path)
        (reason,) = summary.failed.values()
        assert "MeasureError: the run is too short for the meter: stand-in counted no" in reason
        assert (summary.done, summary.table) == (0, None)

    def test_a_network_that_cannot_be_trained_does_not_cost_the_others(self, real, tmp_path):
        networks = (f"{HERE}:no_batch_of_one", f"{HERE}:small")
        study = replace(real, networks=networks, batch_sizes=(1,), repetitions=1,
                        data=Data("digits", images=40))  # fmt: skip
        summary = run_study(study, tmp_path)
        assert (summary.planned, summary.done) == (2, 1)
        assert read_runs(summary.table)["network"].tolist() == [f"{HERE}:small"]
        assert len(summary.failed) == 2  # in the warm-up, and its run
        for what, reason in summary.failed.items():
            assert "no_batch_of_one, batch 1, 8x8, cpu" in what
            assert "ValueError: Expected more than 1 value per channel" in reason

    def test_a_device_that_is_lost_ends_the_study(self, real, tmp_path, monkeypatch):
        def dead(device):
            raise RuntimeError("CUDA error: unspecified launch failure")

        monkeypatch.setattr(trainer, "_synchronize", dead)
        with pytest.raises(
            DeviceLost, match=r"cpu cannot be used any more \(CUDA error.*new process"
        ):
            run_study(real, tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"batch_sizes": (500,)}, "a batch of 500 is more than the 210 training images"),
            ({"image_sizes": (16,)}, "does not take images of 16x16"),
            ({"networks": ("resnet",)}, "torchvision has no model 'resnet'"),
            ({"devices": ("tpu",)}, "devices must be cpu, cuda or cuda:N"),
        ],
    )
    def test_mistakes_are_found_before_the_first_run(self, real, tmp_path, change, message):
        with pytest.raises(InvalidInput, match=message):
            run_study(replace(real, **change), tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestUtilisation:
    """Of a GPU, without one: the driver's answers are given."""

    def share(self, monkeypatch, answer):
        monkeypatch.setattr(trainer, "_SAMPLE_S", 0.001)
        monkeypatch.setattr(torch.cuda, "utilization", answer)
        with trainer._Utilisation(torch.device("cuda")) as utilisation:
            time.sleep(0.05)
        return utilisation.share

    def test_it_is_the_mean_of_what_the_driver_says(self, monkeypatch):
        answers = itertools.cycle((25, 75))
        found = self.share(monkeypatch, lambda device: next(answers))
        assert found == pytest.approx(0.5, abs=0.125)  # an odd number of samples at worst

    def test_it_is_unknown_where_the_driver_hides_it(self, monkeypatch):
        def hidden(device):
            raise RuntimeError("insufficient permissions")

        assert self.share(monkeypatch, hidden) is None


class TestTable:
    def write(self, tmp_path, text):
        path = tmp_path / "theirs.csv"
        path.write_text(text)
        return path

    def test_other_peoples_columns(self, tmp_path):
        path = self.write(tmp_path, "net,kJ * 2,use (%)\nvgg16,0.5,90\nresnet50,0.25,\n")
        table = read_runs(path, {
            "network": "net", "energy_per_image_j": "kJ * 2 * 1000", "utilisation": "use (%)*0.01",
        })  # fmt: skip
        assert table["energy_per_image_j"].tolist() == [500, 250]
        assert table["utilisation"][0] == pytest.approx(0.9)
        assert math.isnan(table["utilisation"][1])
        assert "does not say whether they were measured" in table.attrs["notes"][0]

    def test_runs_without_energy_are_left_out_and_counted(self, tmp_path):
        path = self.write(tmp_path, "network,energy_j,images\na,1,2\nb,,2\n")
        table = read_runs(path)
        assert table["energy_per_image_j"].tolist() == [0.5]
        assert table.attrs["notes"][1] == "1 of 2 runs have no energy: left out"

    @pytest.mark.parametrize(
        ("text", "columns", "message"),
        [
            ("a,b\n1,2\n", {}, "no column 'network'; there are a, b. Say which one it is"),
            ("a,b\n1,2\n", {"network": "c"}, "no column 'c'; there are a, b"),
            ("network,energy_per_image_j\nx,many\n", {}, "holds something else than numbers"),
            ("network,energy_per_image_j\nx,-1\n", {}, "must be above 0"),
            ("network,energy_per_image_j\nx,\n", {}, "holds no run"),
            ("", {}, "cannot be read as a CSV file"),
            ("net,e,use\na,1,90\nb,1,56 %\n", {"utilisation": "use * 0.01"},
             "'use' holds '56 %', which cannot be multiplied by 0.01; write it as a plain number"),
            ("network,energy_j,images\nx,many,1\n", {}, "energy_j holds something else than num"),
        ],
    )  # fmt: skip
    def test_bad_tables(self, tmp_path, text, columns, message):
        with pytest.raises(DatasetError, match=message):
            read_runs(self.write(tmp_path, text), columns)

    def test_a_column_that_no_run_table_has(self, tmp_path):
        path = self.write(tmp_path, "a\n1\n")
        with pytest.raises(InvalidInput, match="'joules' is no column of a run table"):
            read_runs(path, {"joules": "a"})

    def test_a_table_that_was_changed_is_refused(self, study, tmp_path):
        table = run_study(study, tmp_path, FakeTrainer()).table
        table.write_text(table.read_text().replace(",100,", ",200,", 1))
        with pytest.raises(DatasetError, match="was changed after it was written"):
            read_runs(table)

    def test_runs_on_a_device_whose_utilisation_is_hidden(self, study, tmp_path):
        class Hidden(FakeTrainer):
            def train(self, planned, should_stop):
                return replace(super().train(planned, should_stop), utilisation=None)

        table = read_runs(run_study(study, tmp_path, Hidden()).table)
        assert table["utilisation"].isna().all()
        assert len(analyze(table).tables["pairwise"]) == 4

    def test_what_is_written_beside_it(self, study, tmp_path):
        run_study(study, tmp_path, FakeTrainer())
        facts = json.loads((tmp_path / "datapackage.json").read_text())["layer_energy"]
        assert facts["study"]["seed"] == 0
        assert facts["machine"] == "this"
        assert facts["assumptions"] == ["Energy is simulated: nothing was measured."]


def test_a_configuration_in_words():
    text = str(Configuration("resnet18", 32, 64, "cuda:1"))
    assert text == "resnet18, batch 32, 64x64, cuda:1"
