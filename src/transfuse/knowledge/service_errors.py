"""Every refusal of the service as JSON: `{"success": false, "code": STATUS, "error": "..."}`."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from transfuse.knowledge.service_gate import KEY_HEADER
from transfuse.knowledge.service_records import ErrorReply

_MAX_FAULTS_TOLD = 5
_RETRY_AFTER_S = 1
_MEANINGS = {
    400: "The body is no JSON, or the host is not one that this service answers to.",
    401: f"The header `{KEY_HEADER}` is missing, or its key is not accepted.",
    404: "There is no such index.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body's content type is not application/json.",
    422: "A field is wrong; the error names it.",
    500: "A fault of the service; its log has more.",
    503: "Too busy, or this index cannot be searched by meaning (then mode `lexical` and vectors work).",
}
_ID_WORDS = "expected an index's id: letters, digits, '.', '_' and '-', at most 128"
_PATTERN_WORDS = {
    "query": "expected at least one visible character, and no NUL",
    "contract_id": _ID_WORDS,
    "index_id": _ID_WORDS,
}


def error_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """How a route's refusals are described in the OpenAPI schema."""
    return {code: {"model": ErrorReply, "description": _MEANINGS[code]} for code in codes}


def too_busy() -> HTTPException:
    """No thread was free in time."""
    return HTTPException(
        503, "too many searches at once; try again in a moment.", headers={"Retry-After": str(_RETRY_AFTER_S)}
    )


def answer_errors(app: FastAPI) -> None:
    """Have an app answer all of its errors as JSON."""
    app.exception_handler(StarletteHTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(Exception)(_own_fault)


def _error(code: int, error: str, headers: Mapping[str, str] | None = None) -> Response:
    readable = error.encode(errors="replace").decode()  # what a client sends may hold lone surrogates
    return JSONResponse(ErrorReply(code=code, error=readable).model_dump(), code, headers=headers)


async def _http_error(request: Request, err: StarletteHTTPException) -> Response:
    detail = str(err.detail)
    if not isinstance(err, HTTPException):  # the router's own
        allowed = (err.headers or {}).get("Allow", "see /openapi.json")
        detail = {
            404: "there is no such path; /openapi.json describes those that there are.",
            405: f"expected another method on this path: {allowed}.",
        }.get(err.status_code, detail)
    elif err.status_code == 400:  # the framework's own, where JSON cannot be parsed at all
        detail = "the body cannot be read; expected one JSON object in UTF-8."
    return _error(err.status_code, detail, err.headers)


async def _validation_error(request: Request, err: RequestValidationError) -> Response:
    """Which fields are wrong and how, without what they hold."""
    faults = [_fault(each) for each in err.errors()]
    more = [f"and {len(faults) - _MAX_FAULTS_TOLD} more"] if len(faults) > _MAX_FAULTS_TOLD else []
    return _error(422, "; ".join([*faults[:_MAX_FAULTS_TOLD], *more]))


def _fault(error: Mapping[str, Any]) -> str:
    place = [part for part in error["loc"] if part not in ("body", "path")]
    if error["type"] == "json_invalid":
        return f"the body is no JSON: {error['ctx']['error']} at character {place[0] if place else 0}"
    name = re.sub(r"[^A-Za-z0-9_.-]", "?", ".".join(str(part)[:64] for part in place)) or "body"
    if error["type"] == "extra_forbidden":
        return f"{name}: there is no such field; /openapi.json lists them"
    if error["type"] == "string_pattern_mismatch":
        return f"{name}: {_PATTERN_WORDS[name]}"
    return f"{name}: {error['msg']}"


async def _own_fault(request: Request, err: Exception) -> Response:
    return _error(500, "the service failed on this request; its log has more.")
