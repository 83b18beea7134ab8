"""The frameworks' callbacks, in real training runs on a clock that the steps move."""

import warnings

import pytest
import torch
from torch import nn

from layer_energy.meters import Reading, ReplayMeter, SimulatedMeter, VirtualClock


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
    callback = EnergyCallback(
        SimulatedMeter(50.0, clock), show=shown.append, early_stopping=stopping
    )

    def train(**options):
        arguments = transformers.TrainingArguments(
            tmp_path, per_device_train_batch_size=2, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=True, logging_strategy="no", **options,
        )  # fmt: skip
        transformers.Trainer(
            Tiny(), arguments, train_dataset=rows, callbacks=[Clock(), callback]
        ).train()

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


def test_lightning():
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

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)

    def fit(*callbacks, **options):
        pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
            callbacks=[EnergyCallback(SimulatedMeter(50.0, clock), show=shown.append),
                       *callbacks], **options,
        ).fit(Tiny(), loader)  # fmt: skip

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
