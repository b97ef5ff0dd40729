"""An independent reference implementation, and the tests that hold it to transformers."""
