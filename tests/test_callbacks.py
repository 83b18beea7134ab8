"""The frameworks' callbacks, in real training runs on a clock that the steps move."""

import warnings

import pytest
import torch
from torch import nn

from layer_energy.meters import Reading, ReplayMeter, SimulatedMeter, VirtualClock
from layer_energy.training.callbacks import base


class Counted(SimulatedMeter):
    """Knows how often it was read."""

    reads = 0

    def read(self):
        self.reads += 1
        return super().read()


def test_hugging_face(monkeypatch, tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    from layer_energy.training.callbacks.transformers import EnergyCallback

    # this repository's folder of the same name is not the datasets package
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x, labels):
            return {"loss": ((self.layer(x) - labels) ** 2).mean()}

    clock, shown = VirtualClock(), []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            clock.advance(2.0)

    rows = [{"x": torch.randn(2), "labels": torch.randn(1)} for _ in range(8)]
    stopping = transformers.EarlyStoppingCallback(early_stopping_patience=2)
    meter = Counted(50.0, clock)
    callback = EnergyCallback(meter, show=shown.append, early_stopping=stopping)

    def train(evaluated=None, **options):
        arguments = transformers.TrainingArguments(
            tmp_path, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=True, logging_strategy="no",
            prediction_loss_only=True, **options,
        )  # fmt: skip
        transformers.Trainer(
            Tiny(), arguments, train_dataset=rows, eval_dataset=evaluated,
            callbacks=[Clock(), callback],
        ).train()  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(num_train_epochs=3)
        assert [p.epochs_done for p in shown] == [1, 2, 3, 3]
        assert [p.energy_j for p in shown] == pytest.approx([1200] * 4)  # 4 steps × 100 J × 3
        assert shown[0].epochs == 3
        assert [p.soonest_j for p in shown[:2]] == pytest.approx([800, 1200])
        shown.clear()
        train(max_steps=10)
    assert shown[0].epochs == pytest.approx(2.5)
    assert shown[0].energy_j == pytest.approx(1000)
    assert callback.projection.energy_j == pytest.approx(1000)
    monkeypatch.setattr(base, "READ_EVERY_S", 0.0)
    meter.reads = 0
    train(rows, num_train_epochs=2, eval_strategy="epoch", per_device_eval_batch_size=4)
    assert meter.reads == 1 + 2 * (4 + 1 + 2) + 1  # start; steps, end, and evaluation; finish


def test_lightning(monkeypatch):
    pytest.importorskip("lightning")
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader, TensorDataset

    from layer_energy.training.callbacks.lightning import EnergyCallback

    clock, shown = VirtualClock(), []

    class Tiny(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, index):
            clock.advance(2.0)
            loss = self.layer(batch[0]).pow(2).mean()
            self.log("loss", torch.tensor(1.0))
            return loss

        def validation_step(self, batch, index):
            clock.advance(1.0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)

    def fit(*callbacks, meter=None, validated=None, **options):
        meter = meter or SimulatedMeter(50.0, clock)
        pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[EnergyCallback(meter, show=shown.append), *callbacks], **options,
        ).fit(Tiny(), loader, validated)  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(max_epochs=3)
        assert [p.epochs_done for p in shown] == [1, 2, 3, 3]
        assert [p.energy_j for p in shown] == pytest.approx([1200] * 4)
        shown.clear()
        fit(pl.callbacks.EarlyStopping("loss", patience=3, check_on_train_epoch_end=True),
            max_epochs=30)  # fmt: skip
    assert shown[0].energy_j == pytest.approx(12_000)
    assert [p.soonest_j for p in shown[:3]] == pytest.approx([1200, 1600, 1600])
    assert shown[-1].energy_j == pytest.approx(1600)
    assert "ended after 4 of 30 epochs" in shown[-1].notes[0]
    shown.clear()
    monkeypatch.setattr(base, "READ_EVERY_S", 0.0)
    meter = Counted(50.0, clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(meter=meter, validated=loader, max_epochs=2)
    assert meter.reads == 1 + 2 * (4 + 4 + 1) + 1  # start; steps, validation, and end; finish
    assert shown[-1].energy_j == pytest.approx(2 * 50 * (4 * 2 + 4 * 1))


def test_a_failing_meter_warns_and_lets_training_go_on():
    from layer_energy.training.callbacks.base import EnergyHooks

    hooks = EnergyHooks(ReplayMeter([Reading(0, 0), Reading(1, 1)]), show=lambda p: None)
    hooks.begin(nn.Linear(1, 1), 3)
    hooks.epoch_ends(3, None)
    with pytest.warns(UserWarning, match="no longer projected: the recording ends"):
        hooks.epoch_ends(3, None)
    hooks.epoch_ends(3, None)
    hooks.end()
    assert hooks.projection.epochs_done == 1
