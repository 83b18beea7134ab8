"""``layer-energy predict-training``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer

from layer_energy.cli.base import Json, app, out, parse_inputs, print_json
from layer_energy.cli.predict import Dtype, HostSpeed, LaunchOption, ModelName, Profile
from layer_energy.errors import InvalidInput
from layer_energy.units import WORLD_INTENSITY_G_PER_KWH

if TYPE_CHECKING:
    from torch import nn

    from layer_energy.training.forecast import TrainingForecast


@app.command(
    "predict-training",
    epilog="Example: layer-energy predict-training resnet18 --images 50000 --epochs 90",
)
def predict_training(
    model: ModelName,
    images: Annotated[int, typer.Option(help="Training images of an epoch.")],
    epochs: Annotated[int, typer.Option(help="Epochs.")],
    batch_size: Annotated[int, typer.Option("--batch-size", help="Images of a batch.")] = 32,
    validation_images: Annotated[int, typer.Option(help="Validation images of an epoch.")] = 0,
    input: Annotated[  # noqa: A002  # the option's name
        list[str] | None,
        typer.Option(
            "--input", help="Shape of one sample, 3,224,224 or 128:int64; NAME=SHAPE for a keyword."
        ),
    ] = None,
    device: Profile = None,
    dtype: Dtype = None,
    launch: LaunchOption = None,
    host_speed: HostSpeed = 1.0,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "adamw",
    accumulation: Annotated[int, typer.Option(help="Batches per step of the optimizer.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activations are computed twice, not kept.")
    ] = False,
    frozen_backbone: Annotated[
        bool, typer.Option("--frozen-backbone", help="Only the last layer is trained.")
    ] = False,
    loading: Annotated[
        float, typer.Option("--loading", help="Images a second that the data loader delivers.")
    ] = math.inf,
    idle_power_w: Annotated[
        float | None, typer.Option(help="Watts of the device while it waits for images.")
    ] = None,
    max_power_w: Annotated[
        float | None, typer.Option(help="Its power limit, for the usual formulas beside.")
    ] = None,
    carbon_intensity: Annotated[
        float, typer.Option(help="g CO2e per kWh of electricity.")
    ] = WORLD_INTENSITY_G_PER_KWH,
    price: Annotated[float, typer.Option(help="Price of a kWh, assumed if not given.")] = 0.25,
    currency: Annotated[str, typer.Option(help="Currency of the price.")] = "EUR",
    as_json: Json = False,
) -> None:
    """Predict the joules, hours and carbon of a whole training run before it starts."""
    from layer_energy.models import default_input, on_model
    from layer_energy.training.predict import predict_training as predict

    args, kwargs = parse_inputs(input or [])
    if len(args) > 1:
        raise InvalidInput(
            f"--input names {len(args)} inputs by their place, and one is taken; write the others "
            "as NAME=SHAPE"
        )
    sample = args[0] if args else None if kwargs else default_input(model)

    def forecast_of(module: nn.Module) -> TrainingForecast:
        return predict(
            module,
            images=images,
            epochs=epochs,
            batch_size=batch_size,
            validation_images=validation_images,
            input=sample,
            kwargs=kwargs,
            device=device,
            dtype=dtype,
            launch=launch,
            host_speed=host_speed,
            optimizer=optimizer,
            accumulation=accumulation,
            checkpointing=checkpointing,
            loading_images_per_s=loading,
            idle_power_w=idle_power_w,
            max_power_w=max_power_w,
            intensity_g_per_kwh=carbon_intensity,
            price_per_kwh=price,
            currency=currency,
            name=model,
        )

    forecast = on_model(model, forecast_of, frozen_backbone)
    if as_json:
        print_json(forecast.to_dict())
    else:
        out.print(str(forecast), markup=False, highlight=False)
