"""The package's OpenAPI file describes the page's JSON responses."""

from __future__ import annotations

import json
import typing as t
from collections import Counter
from importlib import resources

import hypothesis
import hypothesis.strategies as st
import pytest
import schemathesis
from site_under_test import Site
from test_page import IPHONE, JSON, PREFIX, id_of, see, with_page

from flask_session_registry._web import views

DESCRIPTION = json.loads(
    resources.files("flask_session_registry._web").joinpath("openapi.json").read_text()
)


@pytest.fixture
def described(site: Site) -> Site:
    with_page(site)
    # The requests have a different address and user agent than the login.
    site.login_manager.session_protection = None
    site.app.get("/openapi.json")(lambda: DESCRIPTION)
    return site


def test_every_address_is_described(described: Site) -> None:
    """All URLs of the blueprint are described, and no others."""
    rules = {
        rule.rule.removeprefix(PREFIX).replace("<", "{").replace(">", "}")
        for rule in described.app.url_map.iter_rules()
        if rule.endpoint.startswith("session_registry.") and "static" not in rule.endpoint
    }
    assert rules == set(DESCRIPTION["paths"])
    page = DESCRIPTION["components"]["schemas"]["Page"]["properties"]
    assert page["sessions"]["maxItems"] == views.PAGE_SIZE + 1
    assert page["recently_ended"]["maxItems"] == views.RECENTLY_ENDED


@hypothesis.given(data=st.data())
@hypothesis.settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def hold(described: Site, operation: t.Any, answers: Counter[t.Any], data: st.DataObject) -> None:
    """Send what the description allows, and validate the response against it."""
    browser, other = described.browser("Firefox"), described.browser(IPHONE)
    if data.draw(st.booleans(), label="is signed in"):
        browser.login()
        other.login()
    case = data.draw(operation.as_strategy())
    headers = dict(JSON)
    if browser.cookies:
        if case.path_parameters and data.draw(st.booleans(), label="knows the id"):
            case.path_parameters["id"] = id_of(other)
        if operation.method == "post" and data.draw(st.booleans(), label="has a token"):
            case.headers["X-CSRFToken"] = see(browser)["csrf_token"]
    response = case.call(headers=headers, cookies=browser.cookies)
    answers[operation.label, response.status_code] += 1
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            schemathesis.checks.status_code_conformance,
            schemathesis.checks.content_type_conformance,
            schemathesis.checks.response_headers_conformance,
            schemathesis.checks.response_schema_conformance,
        ],
    )
    with described.context():
        described.forget_all()


@pytest.mark.once
@pytest.mark.no_cover
def test_answers_are_as_described(described: Site) -> None:
    """Whatever is sent, status, type, headers and body are as described."""
    schema = schemathesis.openapi.from_wsgi("/openapi.json", described.app)
    answers: Counter[t.Any] = Counter()
    for result in schema.get_all_operations():
        hold(described, result.ok(), answers)
    found = {(label.split()[1].removeprefix(PREFIX), status) for label, status in answers}
    assert found >= {
        ("/", 200),
        ("/", 401),
        *(
            (f"/{path}", status)
            for path in ("revoke-others", "revoke-all")
            for status in (200, 400, 401)
        ),
        *(("/{id}/revoke", status) for status in (200, 400, 401, 404)),
    }
