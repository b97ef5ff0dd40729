"""Metrics of what is in use of the server's limits, as gauges that are summed over API server processes."""

from prometheus_client import Gauge

__all__ = ["observe_decoded_pixels", "observe_in_flight", "observe_uploads"]

_IN_FLIGHT = Gauge(
    "vtr_in_flight_requests",
    "Requests inside the server now, waiting in the engine or running.",
    multiprocess_mode="livesum",
)
observe_in_flight = _IN_FLIGHT.inc
"""So many requests came in or, below 0, are done with, however they ended."""

_UPLOADS = Gauge(
    "vtr_uploads", "Requests whose body is still on its way.", multiprocess_mode="livesum"
)
observe_uploads = _UPLOADS.inc
"""So many more bodies are arriving or, below 0, are here or came to nothing."""

_DECODED_PIXELS = Gauge(
    "vtr_decoded_pixels", "Pixels decoded and not yet processed.", multiprocess_mode="livesum"
)
observe_decoded_pixels = _DECODED_PIXELS.inc
"""So many more pixels are held by requests, or fewer."""
