"""The OpenAPI document of control's routes, as they really answer: every failure in our one shape, every route with its scope.

FastAPI describes its own validation answer (422) and knows no keys; what it wrote is corrected here.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key: my_<id>_<secret>."},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_FAILURE = {
    "description": "Not done; the code says why: 400, 401, 403, 404, 409, 413, 500, 503.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of all routes of `app`, each with its scope as `x-scope`."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = _FAILURE
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"], components["securitySchemes"] = _ERROR, _SCHEMES
    found["security"] = [{name: []} for name in _SCHEMES]
    return found
