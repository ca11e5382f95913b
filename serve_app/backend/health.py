"""What applications look like from outside: which models can answer, and why others cannot."""

from collections.abc import Sequence

from serve_app.backend.application import ROUTER_NAME, Application, has_ready
from serve_app.backend.protocol import HealthReport, Newcomer
from serve_app.types.models import CopyState


def health_of(applications: Sequence[Application]) -> HealthReport:
    """Healthy when every application that has run has a copy that says that it is ready."""
    if not applications:
        return HealthReport(False, {}, "no model is deployed")
    models: dict[str, list[CopyState]] = {}
    num_resumes: dict[str, int] = {}
    num_choices: dict[str, dict[str, int]] = {}
    ill: list[str] = []
    for application in applications:
        for label in application.labels:
            if label in models:
                ill.append(f"{application.name}: its model name {label} is taken by another application; rename one")
                continue
            models[label] = application.fresh_copies()
            num_resumes[label] = sum(calls.num_resumes for calls in application.calls.values())
            if application.is_routed:
                num_choices[label] = application.calls[ROUTER_NAME].chooser.counts()
            reason = _why_ill(application, models[label])
            if reason is not None:
                ill.append(f"{label}: {reason}")
    asleep = [label for one in applications if one.is_asleep for label in one.labels]
    newcomers = {one.name: _newcomer(one) for one in applications if one.is_newcomer}
    detail = "; ".join([*ill, *(told for one in applications if (told := _note(one)) is not None)])
    is_discovering = may_have_more_models(applications)
    is_healthy = bool(models) and not ill
    return HealthReport(is_healthy, models, detail, is_discovering, newcomers, asleep, num_resumes, num_choices)


def may_have_more_models(applications: Sequence[Application]) -> bool:
    """Whether one has not told its models' names yet, and may still do so."""
    return any(not one.descriptions and one.status != "DEPLOY_FAILED" for one in applications)


def _why_ill(application: Application, fresh: list[CopyState]) -> str | None:
    """Why an application cannot answer; None: it can."""
    if has_ready(fresh) or application.is_asleep or application.is_left:
        return None
    details = [f"{state.state} ({state.detail})" for state in fresh]
    if details:
        return ", ".join([*details, *([application.room] if application.room else [])])
    return f"no copy answers; application is {application.status} {application.reason}".strip()


def _note(application: Application) -> str | None:
    """What is to be told of an application without its being ill; None: nothing."""
    if application.is_newcomer:
        told = _newcomer(application)
        return f"{application.name}: {told.state}" + (f" ({told.detail})" if told.detail else "")
    if application.is_asleep:
        state = "asleep" if application.has_none else "waking"
        return f"{', '.join(application.labels)}: {state}"
    if application.status == "DEPLOY_FAILED" and has_ready(application.fresh_copies()):
        return f"{application.name}: its last deploy failed, copies that are ready go on ({application.reason})"
    return (
        f"{application.name}: {application.room}"
        if application.room and has_ready(application.fresh_copies())
        else None
    )


def _newcomer(application: Application) -> Newcomer:
    """How it is told of before it has run."""
    if application.room:
        return Newcomer("waiting", application.room)
    return Newcomer("failed" if application.status == "DEPLOY_FAILED" else "starting", application.reason)
