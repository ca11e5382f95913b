"""OpenAI's `/v1/files` and `/v1/batches`."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from serve_app.errors import NotFoundError, RequestError
from serve_app.gateway.batches.batch_tools import BatchTools
from serve_app.gateway.batches.callers import BatchCaller, caller_of
from serve_app.gateway.batches.file_store import FileStore
from serve_app.gateway.batches.paging import paging_of
from serve_app.gateway.batches.running_lines import RunningLines
from serve_app.gateway.batches.service import BatchService
from serve_app.gateway.bodies.batches import BatchBody, BatchList, FileDeleted, FileList
from serve_app.gateway.bodies.convert import parse_body
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.inner_call import InnerCalls
from serve_app.gateway.http.shell import RequestShell, json_answer
from serve_app.gateway.http.upload import receive_file
from serve_app.preprocessing.text_pool import TextPool

BATCH_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/score",
    "/v1/rerank",
)
_FILES_LIMIT, _MAX_FILES_LIMIT = 10_000, 10_000
_BATCHES_LIMIT, _MAX_BATCHES_LIMIT = 20, 100
_OFF = "files and batches are off; set batches.directory in the Gateway's args, a directory to keep them in"

Endpoint = Callable[[Request], Awaitable[Response]]


def batch_service(plane: DataPlane, routes: Sequence[Route]) -> BatchService | None:
    """Works what the routes of BATCH_PATHS answer; None: it is off."""
    config, directory = plane.config.batches, plane.batches_directory
    if config is None or directory is None:
        return None
    inner = [route for route in routes if route.path in BATCH_PATHS]

    def tools(files: FileStore, threads: TextPool) -> BatchTools:
        return BatchTools(
            config=config,
            files=files,
            threads=threads,
            call=InnerCalls(plane, inner),
            caller_of=partial(caller_of, keys=plane.keys),
            check_model=partial(_check_model, plane),
            num_waiting=partial(_num_waiting, plane),
            running=RunningLines(config.concurrency),
            max_line_bytes=plane.config.max_request_bytes,
        )

    endpoints = [route.path for route in inner]
    service = BatchService(directory, config, endpoints, tools, lambda: plane.intake.is_closed)
    plane.metrics.count_batch_requests_left(lambda: service.num_requests_left)
    return service


def batch_routes(service: BatchService | None, shell: RequestShell) -> list[Route]:
    """All routes; where it is off, they say so."""

    def endpoint(answer: Callable[[Request, BatchService], Awaitable[Response]]) -> Endpoint:
        async def run(request: Request) -> Response:
            if service is None:
                raise NotFoundError(_OFF)
            return await answer(request, service)

        return run

    return [
        Route("/v1/files", endpoint(_list_files)),
        Route("/v1/files", endpoint(_upload), methods=["POST"]),
        Route("/v1/files/{file_id}", endpoint(_get_file)),
        Route("/v1/files/{file_id}", endpoint(_delete_file), methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", endpoint(_get_content)),
        Route("/v1/batches", endpoint(_list_batches)),
        Route("/v1/batches", endpoint(partial(_create_batch, shell=shell)), methods=["POST"]),
        Route("/v1/batches/{batch_id}", endpoint(_get_batch)),
        Route("/v1/batches/{batch_id}/cancel", endpoint(_cancel_batch), methods=["POST"]),
    ]


async def _upload(request: Request, service: BatchService) -> Response:
    return json_answer(await receive_file(request, service))


async def _list_files(request: Request, service: BatchService) -> Response:
    query = _query_of(request, ("after", "limit", "order", "purpose"))
    paging = paging_of(query, _FILES_LIMIT, _MAX_FILES_LIMIT, has_order=True)
    page = await service.files_page(paging, query.get("purpose"))
    first, last = _ends_of([one.id for one in page.items])
    return json_answer(FileList(data=page.items, first_id=first, last_id=last, has_more=page.has_more))


async def _get_file(request: Request, service: BatchService) -> Response:
    return json_answer(await service.file(request.path_params["file_id"]))


async def _get_content(request: Request, service: BatchService) -> Response:
    path = await service.file_content(request.path_params["file_id"])
    return FileResponse(path, media_type="application/octet-stream", headers={"x-content-type-options": "nosniff"})


async def _delete_file(request: Request, service: BatchService) -> Response:
    file_id = request.path_params["file_id"]
    await service.delete_file(file_id)
    return json_answer(FileDeleted(id=file_id))


async def _create_batch(request: Request, service: BatchService, shell: RequestShell) -> Response:
    body = parse_body(await shell.read(request), BatchBody)
    return json_answer(await shell.run(request, service.create_batch(body)))


async def _list_batches(request: Request, service: BatchService) -> Response:
    paging = paging_of(_query_of(request, ("after", "limit")), _BATCHES_LIMIT, _MAX_BATCHES_LIMIT, has_order=False)
    page = await service.batches_page(paging)
    first, last = _ends_of([one.id for one in page.items])
    return json_answer(BatchList(data=page.items, first_id=first, last_id=last, has_more=page.has_more))


async def _get_batch(request: Request, service: BatchService) -> Response:
    return json_answer(await service.batch(request.path_params["batch_id"]))


async def _cancel_batch(request: Request, service: BatchService) -> Response:
    return json_answer(await service.cancel_batch(request.path_params["batch_id"]))


def _query_of(request: Request, names: Sequence[str]) -> dict[str, str]:
    """The query of a list. Raises RequestError for what it does not know."""
    for name in request.query_params:
        if name not in names:
            shown = name[:40]
            raise RequestError(f"{shown} is unknown; leave it out, or send one of {', '.join(names)}", field=shown)
    return dict(request.query_params)


def _ends_of(ids: Sequence[str]) -> tuple[str | None, str | None]:
    return (ids[0], ids[-1]) if ids else (None, None)


def _check_model(plane: DataPlane, name: str, caller: BatchCaller) -> None:
    if not caller.may_use(name):
        raise NotFoundError(f"model={name[:100]!r} is not served; see /v1/models", field="model")
    plane.models.describe(name)


def _num_waiting(plane: DataPlane, model: str) -> int:
    copies = plane.backend.health().models.get(model, [])
    return min((copy.num_waiting for copy in copies if copy.state == "ready"), default=0)
