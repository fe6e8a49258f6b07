"""Everything about ``SESSION_REGISTRY_UNREGISTERED = "adopt"``: moving in without signing out.

The rest of the package calls hooks of ``Registry.adoption``, which do nothing unless the setting is
``"adopt"``. To remove it: delete this folder, ``tests/test_adoption.py``, the setting in
``_config.py``, and these lines; ``check_unregistered`` becomes ``UNREGISTERED``.

- ``_app.py``: ``from ._adoption.hooks import NoAdoption``
- ``_app.py``: ``adoption: NoAdoption``
- ``_app.py``: ``adoption.keeps_ended_rows``
- ``_setup.py``: ``from ._adoption.adoption import adoption_for``
- ``_setup.py``: ``registry.adoption = adoption_for(registry)``
- ``extension.py``: ``adoption.prepare``
- ``_request/context.py``: ``from .._adoption.adoption import AdoptionState``
- ``_request/context.py``: ``adoption: AdoptionState | None = None``
- ``_request/context.py``: ``if result.adoption is not None:``
- ``_request/context.py``: ``self.adoption = result.adoption``
- ``_request/values.py``: ``from .._adoption.adoption import AdoptionState``
- ``_request/values.py``: ``adoption: AdoptionState | None = None``
- ``_request/check.py``: ``adoption.check_unregistered``
- ``_request/check.py``: ``adoption.check_remembered``
- ``_request/check.py``: ``adoption.advice``
- ``_request/persistence.py``: ``adoption.finish``
- ``_revocation/revoke.py``: ``adoption.before_change``
- ``_revocation/revoke.py``: ``adoption.after_revocation``
- ``_revocation/password_watch.py``: ``adoption.listen``
- ``_revocation/password_watch.py``: ``adoption.before_change``
- ``_revocation/password_watch.py``: ``adoption.after_unwatched_change``
- ``_revocation/bulk.py``: ``adoption.before_revoking_everybody``
- ``_web/views.py``: ``adoption.is_pending``
- ``_ops/doctor/sql.py``: ``adoption.find_overdue``

Nothing else uses ``schedule_purge`` in ``_request/deferred.py``.
"""
