"""An independent reference implementation, and the tests that hold it to transformers."""

from tests.reference.compat import make_transformers_importable

make_transformers_importable()
