"""What is read from Serve's view of an application."""

import pytest

from serve_app.cli.serve_view import ApplicationView, DeploymentView

TRACE = """A replica failed to start with exception. Retrying 2 more time(s). Error:
\x1b[36mray::ServeReplica:demo:Router.initialize_and_get_metadata()\x1b[39m (pid=1, ip=127.0.0.1)
  File "router.py", line 3, in __init__
serve_app.errors.{kind}: source=/x is not a directory

During handling of the above exception, another exception occurred:
RuntimeError: Traceback (most recent call last):
"""


def application(status: str, message: str = "", trace: str = "") -> ApplicationView:
    router = DeploymentView("Router", "UPDATING" if trace else "HEALTHY", trace)
    return ApplicationView("demo", status, message, deployments={"Router": router})


def test_our_own_error_is_all_that_is_said() -> None:
    trace = TRACE.format(kind="ConfigError")
    assert application("DEPLOYING", "", trace).trouble == "source=/x is not a directory"
    two = "source=/x is not a directory\nmax_model_len=9 is too long"
    assert application("DEPLOYING", "", trace.replace("source=/x is not a directory", two)).trouble == two


def test_else_it_is_the_end_of_what_serve_says() -> None:
    text = "\n".join(["Traceback", "", *(f"\x1b[31mline\x1b[0m {number}" for number in range(20))])
    assert application("DEPLOY_FAILED", text).trouble.splitlines() == [f"line {number}" for number in range(8, 20)]
    assert application("RUNNING").trouble == ""


@pytest.mark.parametrize(
    ("status", "kind", "earlier", "has_failed"),
    [
        ("DEPLOY_FAILED", "UnavailableError", "UnavailableError", True),
        ("DEPLOYING", "ConfigError", None, True),
        ("DEPLOYING", "ConfigError", "UnavailableError", True),
        ("DEPLOYING", "ConfigError", "ConfigError", False),
        ("DEPLOYING", "UnavailableError", None, False),
        ("RUNNING", None, "ConfigError", False),
    ],
)
def test_a_setting_that_cannot_work_is_not_tried_again(
    status: str, kind: str | None, earlier: str | None, has_failed: bool
) -> None:
    now = application(status, trace="" if kind is None else TRACE.format(kind=kind))
    before = None if earlier is None else application("DEPLOYING", trace=TRACE.format(kind=earlier))
    assert now.has_failed_since(before) == has_failed
