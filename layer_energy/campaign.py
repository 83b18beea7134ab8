"""A campaign on a CPU: forward passes, training rows and whole networks, in random order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from layer_energy.networks import build_on_meta, layers_of
from layer_energy.optimization import MODES
from layer_energy.plan import Job, NetworkJob, Plan, make_plan
from layer_energy.workload import Workload

CPU_BATCHES = (1, 8)


def cpu_campaign(
    rows: Mapping[str, int],
    training_rows: Mapping[str, int],
    networks: Sequence[str] = (),
    seed: int = 0,
) -> Plan:
    """Plan a campaign on a CPU: everything in random order, so that all sees the same hours.

    The speed of a shared machine wanders within hours: what is measured one after the other cannot
    be compared as well as what is mixed.

    Args:
        rows: layer type → how many forward passes.
        training_rows: the same of forward and backward passes, and steps of optimizers.
        networks: names, see :func:`layer_energy.models.build_model`; measured between the rows.
            Where there are ``rows``, their forward passes are, and each of their layers exactly;
            where there are ``training_rows``, their training steps.
        seed: of the drawing.

    Raises:
        InvalidInput: for a kind that cannot be sampled, a non-positive number of rows, or a network
            that cannot be built.
    """
    whole: list[NetworkJob] = []
    judged: dict[Workload, None] = {}
    for name in networks:
        model, _ = build_on_meta(NetworkJob(name, "", 1))  # a wrong name is told before the work
        if rows:
            forward = [NetworkJob(name, "", size, exact=True) for size in CPU_BATCHES]
            judged |= dict.fromkeys(work for job in forward for work in layers_of(job, model))
            whole += forward
        if training_rows:
            steps = [mode for mode in MODES if mode != "inference"]
            whole += [NetworkJob(name, "", CPU_BATCHES[-1], mode=mode) for mode in steps]
    drawn = (*make_plan(rows, seed).jobs, *make_plan(training_rows, seed, training=True).jobs)
    jobs = [Job(work, ("validation",)) for work in judged]
    jobs += [job for job in drawn if job.workload not in judged]
    rng = Random(seed)
    rng.shuffle(jobs)
    rng.shuffle(whole)
    identity = {
        "seed": seed,
        "mode": "all" if rows and training_rows else "training" if training_rows else "inference",
        "rows": dict(sorted(rows.items())),
        "training_rows": dict(sorted(training_rows.items())),
        "networks": list(networks),
    }
    return Plan(tuple(jobs), tuple(whole), identity)
