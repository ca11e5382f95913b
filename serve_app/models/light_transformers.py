"""transformers without libraries that a shard never calls and that take longer to import than the models do."""

import transformers.utils
from transformers.utils import import_utils

_UNUSED = ("is_sklearn_available", "is_scipy_available")  # assisted generation; losses of object detection


def leave_out_unused_libraries() -> None:
    """Before the first model class is imported: scikit-learn, pandas and scipy, where installed, stay on the disk."""
    for name in _UNUSED:
        for module in (transformers.utils, import_utils):
            setattr(module, name, _is_not_available)


def _is_not_available() -> bool:
    return False
