"""Any events, in any order (SCENARIOS 1 to 47, except servers and limits)."""

from __future__ import annotations

import pytest
from model import open_stage, tell
from stores import STORES

#: On the oldest Python and SQLAlchemy, two stores stand for the others: nothing is stored in one.
LANES = [
    pytest.param(store, marks=[] if store in ("cookie", "redis") else pytest.mark.once)
    for store in STORES
]


@pytest.mark.no_cover
@pytest.mark.parametrize("store", LANES)
def test_cookie_jar_is_signed_in_exactly_when_the_model_says_so(store: str, records: str) -> None:
    """This holds after each step of a random story, on every store. See 'model.py'."""
    with open_stage(store, records) as stage:
        tell(stage, 1, max_examples=4, stateful_step_count=40)
        assert stage.steps > 100
