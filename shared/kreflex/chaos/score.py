"""The score and the verdict of an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kreflex.chaos.experiments import ExperimentSpec, ExperimentStatus, Probe, Probed


def success(probed: Probed) -> float:
    """Give the percentage of a probe's checks that passed: before, during and after count alike."""
    edges = [ok for ok in (probed.before, probed.after) if ok is not None]
    passed, all_ = probed.passed + sum(edges), probed.passed + probed.failed + len(edges)
    return 100.0 * passed / all_ if all_ else 0.0


def score(probes: Iterable[Probed]) -> float | None:
    """Weigh the probes' percentages as LitmusChaos weighs those of experiments; without probes there is no score.

    https://docs.litmuschaos.io/docs/concepts/resilience-score: sum of weight times percentage, by the sum of weights.
    """
    return weighted([(probed.weight, success(probed)) for probed in probes])


def weighted(parts: Sequence[tuple[int, float]]) -> float | None:
    """Give the mean by weight; None if nothing has any."""
    total = sum(weight for weight, _ in parts)
    return round(sum(weight * percent for weight, percent in parts) / total, 1) if total else None


def shortfalls(spec: ExperimentSpec, status: ExperimentStatus) -> list[str]:
    """Tell all that keeps an experiment from having passed."""
    wanted = {probe.name: probe for probe in spec.probes}
    told = [status.aborted] if status.aborted else []
    if not any(one.injected_at is not None for one in status.injected):
        told.append("nothing was hit")
    told += [text for one in status.probes if one.name in wanted for text in _of_probe(wanted[one.name], one)]
    return told + _of_remediation(spec, status)


def _of_probe(probe: Probe, probed: Probed) -> list[str]:
    told = []
    if "After" in probe.when and probed.after is not True:
        told.append(f"{probe.name} does not pass afterwards")
    checks = probed.passed + probed.failed
    if "During" in probe.when and checks and 100 * probed.failed > probe.tolerated * checks:
        told.append(f"{probe.name} failed {probed.failed} of {checks} times, more than {probe.tolerated}%")
    if "During" in probe.when and not checks:
        told.append(f"{probe.name} was never looked at")
    return told


def _of_remediation(spec: ExperimentSpec, status: ExperimentStatus) -> list[str]:
    if spec.expects is None:
        return []
    healed = status.remediation
    if healed is None or not healed.record:
        return [f"{spec.expects.function} did nothing about it"]
    return (
        [] if healed.verdict == "Recovered" else [f"{spec.expects.function}: {healed.verdict or 'no verdict in time'}"]
    )
