"""Problem documents (RFC 9457), one for each kind of database trouble."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from mgf.fastapi.db._trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Mapping

MEDIA_TYPE = "application/problem+json"


class ProblemResponse(JSONResponse):
    """A JSON response that says it is a problem document."""

    media_type = MEDIA_TYPE


@dataclass(frozen=True, kw_only=True)
class Problem:
    """How one kind of trouble is answered.

    Args:
        status: the HTTP status.
        detail: one sentence for the client; the same for every request, so that it can hold no
            value, SQL or credential.
        type: a URI for the kind of problem. With ``about:blank`` the status says it all.
        title: the status's own phrase unless given.
        retry_after: seconds, for the header ``Retry-After``; None sends none.
    """

    status: int
    detail: str
    type: str = "about:blank"
    title: str | None = None
    retry_after: int | None = None

    def response(
        self, code: Trouble | str, headers: Mapping[str, str] | None = None
    ) -> ProblemResponse:
        """Return the response, whose member ``code`` names the kind of trouble.

        Args:
            code: the kind.
            headers: more headers.
        """
        headers = dict(headers or {})
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        body = {
            "type": self.type,
            "title": self.title or HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            "code": str(code),
        }
        return ProblemResponse(body, self.status, headers)


PROBLEMS: Mapping[Trouble, Problem] = {
    Trouble.UNAVAILABLE: Problem(
        status=503, detail="The database cannot be reached at the moment.", retry_after=5
    ),
    Trouble.POOL_EXHAUSTED: Problem(
        status=503, detail="The service is busy: no database connection was free.", retry_after=1
    ),
    Trouble.CONTENTION: Problem(
        status=503, detail="Other work on the same data got in the way.", retry_after=1
    ),
    Trouble.STATEMENT_TIMEOUT: Problem(status=504, detail="The database took too long to answer."),
    Trouble.CONFLICT: Problem(
        status=409, detail="The request conflicts with data that is stored already."
    ),
    Trouble.CHECK_FAILED: Problem(status=422, detail="A rule of the database refuses the data."),
    Trouble.BAD_VALUE: Problem(status=422, detail="The database cannot store or use a value."),
    Trouble.ROW_REFUSED: Problem(
        status=403, detail="The tenant of the request may not write this row."
    ),
}


def describe(
    status: int, problems: Mapping[str, Problem], *, plain: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the OpenAPI response object of the problems with this status.

    Args:
        status: the status.
        problems: the problems by their code.
        plain: the schema of what FastAPI itself may answer with this status.
    """
    schema = {
        "title": "Problem",
        "description": "A problem document, RFC 9457.",
        "type": "object",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri-reference"},
            "title": {"type": "string"},
            "status": {"type": "integer", "const": status},
            "detail": {"type": "string"},
            "code": {"type": "string", "enum": list(problems)},
        },
    }
    described: dict[str, Any] = {
        "description": " ".join(problem.detail for problem in problems.values()),
        "content": {MEDIA_TYPE: {"schema": schema}},
    }
    if any(problem.retry_after is not None for problem in problems.values()):
        described["headers"] = {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "schema": {"type": "integer"},
            }
        }
    if plain is not None:
        described["content"]["application/json"] = {"schema": plain}
    return described
