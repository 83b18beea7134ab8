"""``layer-energy rebuild``: a dataset out of the raw logs beside it."""

from __future__ import annotations

from layer_energy.cli.base import DatasetFolder, Json, app, err, out, print_json


@app.command(epilog="Example: layer-energy rebuild datasets/nvidia-h200")
def rebuild(folder: DatasetFolder, as_json: Json = False) -> None:
    """Make the rows of a GPU dataset from the raw logs in its folder `raw`."""
    from layer_energy.gpu_log import dataset_from_logs

    with err.status("reading logs"):
        dataset, runs = dataset_from_logs(folder)
    dataset.save(folder)
    for run in runs:
        if run.cut:
            err.print(f"{run.name}: the log ends in the middle of a line; the rest was used")
    facts = {
        "dataset": str(folder),
        "device": dataset.device.name,
        "rows": len(dataset.measurements),
        "networks": len(dataset.networks),
        "test_retest_cv": dataset.test_retest_cv(),
        "runs": dataset.provenance["runs"],
    }
    if as_json:
        print_json(facts)
        return
    cv = facts["test_retest_cv"]
    out.print(
        f"{folder}: {facts['rows']} rows and {facts['networks']} networks of {facts['device']} "
        f"from {len(runs)} logs, {sum(run.salvaged for run in runs)} of the rows given up by the "
        "campaign and usable"
        + (f"; test-retest CV of the joules {cv:.2%}" if cv is not None else "")
    )
