"""What a route's function needs of a request, found out once, when the route is declared.

FastAPI declares routes, describes them and reads their signatures; how it then solves a request is general, and looks
at each signature again at every request: for a booking that takes longer than all that we do ourselves. A ``Plan``
does the same for the kinds of parameters that our routes have, and refuses others when the program starts.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.params import Param
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from api.errors import broken_off

_ABSENT: Final = object()
Errors = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter that comes out of the path, the query, a header or the body."""

    name: str
    alias: str
    field: ModelField
    location: tuple[str, ...]

    def read(self, value: Any, values: dict[str, Any], errors: Errors) -> None:
        """Put what was given, checked, where the function's values are; or its faults where the errors are."""
        if value is not _ABSENT:
            values[self.name], faults = self.field.validate(value, {}, loc=self.location)
            errors.extend(faults)
        elif self.field.field_info.is_required():
            errors.append({"type": "missing", "loc": self.location, "msg": "Field required", "input": None})
        else:
            values[self.name] = self.field.get_default()


@dataclass(frozen=True, slots=True)
class _Step:
    """One function to call: the route's own, or one that it depends on."""

    call: Callable[..., Awaitable[Any]]
    uses: tuple[tuple[str, int], ...]
    """Parameters that are what an earlier step has given, by its number."""
    needs: tuple[int, ...]
    """The numbers of all steps that this one depends on."""
    path: tuple[_Parameter, ...]
    query: tuple[_Parameter, ...]
    headers: tuple[_Parameter, ...]
    body: _Parameter | None
    request_name: str | None
    response_name: str | None


class Plan:
    """The steps to an answer: every function once, what it depends on before it."""

    def __init__(self, dependant: Dependant) -> None:
        """Raises ``TypeError`` for a signature that cannot be planned: it is a mistake in the program."""
        self._steps: list[_Step] = []
        self._numbers: dict[int, int] = {}
        self._add(dependant)
        self.reads_body = any(step.body is not None for step in self._steps)

    async def carry_out(self, request: Request) -> tuple[Any, Response]:
        """What the route's function returns, and the response whose headers it may have set.

        Raises:
            RequestValidationError: with everything that is wrong.
        """
        body = await _body(request) if self.reads_body else _ABSENT
        given: list[Any] = []
        errors: Errors = []
        response = _HEADERS_ONLY
        for step in self._steps:
            values: dict[str, Any] = {}
            right_so_far = len(errors)
            for parameter in step.path:
                parameter.read(request.path_params[parameter.alias], values, errors)
            for parameter in step.query:
                parameter.read(request.query_params.get(parameter.alias, _ABSENT), values, errors)
            for parameter in step.headers:  # Several lines of one name are one list (RFC 9110, 5.3).
                lines = request.headers.getlist(parameter.alias)
                parameter.read(", ".join(lines) if lines else _ABSENT, values, errors)
            if step.body is not None:
                step.body.read(body, values, errors)
            if step.request_name is not None:
                values[step.request_name] = request
            if step.response_name is not None:
                response = values[step.response_name] = Response()
            for name, number in step.uses:
                values[name] = given[number]
            # What depends on something wrong is not called; the rest is, so that a stranger is told nothing else.
            wrong = errors and (len(errors) > right_so_far or any(given[number] is _ABSENT for number in step.needs))
            given.append(_ABSENT if wrong else await step.call(**values))
        if errors:
            raise RequestValidationError(errors)
        return given[-1], response

    def _add(self, dependant: Dependant) -> int:
        call = dependant.call
        if call is None or not _is_async(call):
            raise TypeError(f"{call} is not async: it would run in a thread, which costs more than what it does")
        if (number := self._numbers.get(id(call))) is not None:
            return number
        uses = [(each.name, self._add(each)) for each in dependant.dependencies]
        unknown = (
            *dependant.cookie_params,
            dependant.background_tasks_param_name,
            dependant.security_scopes_param_name,
            dependant.websocket_param_name,
            dependant.http_connection_param_name,
            *dependant.body_params[1:],
        )
        if any(unknown):
            raise TypeError(f"{call} asks for something that is not planned for")
        self._steps.append(
            _Step(
                call=call,
                uses=tuple((name, number) for name, number in uses if name is not None),
                needs=tuple(number for _, number in uses),
                path=tuple(map(_parameter, dependant.path_params)),
                query=tuple(map(_parameter, dependant.query_params)),
                headers=tuple(map(_parameter, dependant.header_params)),
                body=next((_parameter(each) for each in dependant.body_params), None),
                request_name=dependant.request_param_name,
                response_name=dependant.response_param_name,
            )
        )
        self._numbers[id(call)] = len(self._steps) - 1
        return len(self._steps) - 1


_HEADERS_ONLY: Final = Response()
"""Stands for the response of a route that sets no headers of its own; never changed, never sent."""


async def _body(request: Request) -> Any:
    try:
        return await request.json() if await request.body() else _ABSENT
    except json.JSONDecodeError as error:
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body",), "msg": error.msg}]) from None
    except ClientDisconnect:
        raise broken_off() from None


def _parameter(field: ModelField) -> _Parameter:
    info = field.field_info
    if not isinstance(info, Param):
        return _Parameter(field.name, field.name, field, ("body",))
    alias = field.alias
    return _Parameter(field.name, alias, field, (info.in_.value, alias))


def _is_async(call: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(getattr(call, "__call__", None))  # noqa: B004 - an object that is called
