"""Pickle what pickle refuses (lambdas, local functions)."""

import cloudpickle


class PicklableWrapper:
    """Stands for `obj` (calls and attributes pass through); pickled by cloudpickle, and unpickled as `obj` itself."""

    def __init__(self, obj):
        self._obj = obj._obj if isinstance(obj, PicklableWrapper) else obj

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self._obj, name)
